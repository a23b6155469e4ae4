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
    from x402_mask.cli._app import run

    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))
