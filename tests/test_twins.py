"""The two HTTP families are served from one source."""

from tests.twins import SOURCE, TWIN, modules, render


def test_the_twin_is_what_the_source_says() -> None:
    """Run ``make twins`` when this fails."""
    assert modules(TWIN) == modules(SOURCE)
    for name in modules(SOURCE):
        assert (TWIN / name).read_text("utf-8") == render(name), name
