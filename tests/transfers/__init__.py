"""Payments by on-chain transfer: paid once, whatever the endpoint or the process does.

On the real chain, through a JSON-RPC ``proxy`` that can lie, fail and lose answers, and on each
kind of ledger.
"""
