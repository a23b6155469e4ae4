"""The contract of a ledger, kept by every kind: in memory, in a file, in PostgreSQL.

A test that asks for ``store`` or ``ledger`` runs on each kind, one that asks for ``shared`` on
those that processes can share.  What only one kind can suffer has a file of its own: damage, poolers,
clocks, connections that break at any statement.
"""
