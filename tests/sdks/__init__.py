"""Real SDKs in front of a seller that asks for money, each in a process of its own.

They are fetched once into ``.cache``, beside the environment and not into it; where they cannot be
had their tests are skipped and say so.
"""
