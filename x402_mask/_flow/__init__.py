"""The conversation with a seller: no I/O, no clock, no library."""
