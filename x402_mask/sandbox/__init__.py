"""A local Server402: the API marketplace to build and test buyers against, without real money.

``with Sandbox() as sandbox:`` serves it at ``sandbox.url``. It judges proofs for itself and settles
them in an embedded book, or on a chain (``rpc``). Needs the extra ``sandbox``.
"""

try:
    from x402_mask.sandbox.app import create_app
    from x402_mask.sandbox.book import Book, Payment, Settlement
    from x402_mask.sandbox.faults import FAULTS, Faults, parse_faults
    from x402_mask.sandbox.pictures import STATIC
    from x402_mask.sandbox.server import Sandbox, run
    from x402_mask.sandbox.settings import SandboxSettings
except ModuleNotFoundError as exc:
    if exc.name is None or exc.name.partition(".")[0] not in {
        "numpy",
        "PIL",
        "starlette",
        "uvicorn",
    }:
        raise
    said = f"the sandbox needs {exc.name.partition('.')[0]}: pip install 'x402-mask[sandbox]'"
    raise ModuleNotFoundError(said, name=exc.name) from None

__all__ = [
    "FAULTS",
    "STATIC",
    "Book",
    "Faults",
    "Payment",
    "Sandbox",
    "SandboxSettings",
    "Settlement",
    "create_app",
    "parse_faults",
    "run",
]
