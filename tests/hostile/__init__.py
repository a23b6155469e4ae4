"""Sellers that cheat, err or die; ``README.md`` here is their catalogue, each row with its tests.

Each test gets a ``world`` (scripted sellers, one counting wallet, one ledger) that is audited when
it is over, and a ``kind`` of client to buy with.
"""
