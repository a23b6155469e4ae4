"""What the library says it paid is what moved on a real chain, to the unit.

A local EVM with Base's chain id and Circle's own contract (``tests.support.chain``; needs Node),
the official Python seller, and our sandbox settling there.  Skipped, and said so, without Node.
"""
