"""A marketplace's catalog and its schemas: what is believed of them, and what they may cost.

The marketplace is scripted document by document on a real socket (``kit.Shop``).  Here is also
``refine_mask``, and that a body which the service would refuse is never paid for.
"""
