"""The official TypeScript sellers, versions 2 and 1, are paid on a real chain: ``make interop``.

Needs Node and, once, npm; not a part of ``make test``.
"""
