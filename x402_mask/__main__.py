"""``python -m x402_mask``: the command line."""

from x402_mask.cli import main

if __name__ == "__main__":
    main()
