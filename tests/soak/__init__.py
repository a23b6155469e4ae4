"""The long forms of the fault tests, minutes each: ``make soak``.  Not a part of ``make test``.

A thousand kills, ten thousand operations against a chain, an interruption at every line.
``X402_MASK_SOAK_SEED`` chooses other random numbers.
"""
