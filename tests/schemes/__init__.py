"""A way of paying that the library never heard of: one file, registered, and paid with.

``made_up`` is such a file; the tests pay a loopback seller that checks its signatures by itself.
"""
