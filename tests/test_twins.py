"""The two HTTP families are served from one source."""

from tests.twins import SOURCE, TWIN, render


def test_the_twin_is_what_the_source_says() -> None:
    """Run ``make twins`` when this fails."""
    assert TWIN.read_text("utf-8") == render(SOURCE.read_text("utf-8"))
