"""The command line, ``x402-mask``.

Exit codes: 0 done · 1 failed, nothing paid · 2 usage · 3 refused (nothing paid) · 4 outcome unknown
(money may have moved) · 5 paid but the seller failed.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    lacking = [name for name in ("click", "rich") if not _is_there(name)]
    if lacking:
        sys.exit(_told(f"the command line needs {' and '.join(lacking)}", given))
    from x402_mask.cli._app import run

    sys.exit(run(given))


def _is_there(name: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # something says that it is not
        return False


def _told(what: str, given: Sequence[str]) -> int:
    """Say what to install, as everything is said: a line on stderr, or a document on stdout."""
    message = f"{what}: pip install 'x402-mask[cli]'"
    if "--json" not in given:
        sys.stderr.write(f"x402-mask: {message}\n")
        return 1
    import json

    error = {
        "code": "missing_extra",
        "reason": None,
        "message": message,
        "at_risk": False,
        "payment_id": None,
        "exit_code": 1,
    }
    sys.stdout.write(json.dumps({"error": error}, indent=2) + "\n")
    return 1
