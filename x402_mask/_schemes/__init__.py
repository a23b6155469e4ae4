"""One file for each thing that a wallet can sign to pay."""
