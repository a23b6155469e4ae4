"""The local marketplace of ``x402-mask sandbox``, over real sockets.

Its buyer (``buyer``) shares no code with the library, so that a mistake in both is not hidden.
"""
