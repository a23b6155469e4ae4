"""The tests of ``x402_mask``; ``README.md`` beside this file says how to enter.

Each folder tests one part or one kind of danger, and says which in its own docstring.  Real parts
are used throughout: sockets on loopback, SQLite, PostgreSQL, a local chain with Circle's USDC.
Mocks only inject faults.
"""
