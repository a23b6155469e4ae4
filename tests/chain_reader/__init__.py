"""Evidence from a chain: what an honest one proves, and that a lying endpoint frees no money.

``fake`` is a chain in a few lines behind a real JSON-RPC socket, which can lie in any answer;
``test_anvil`` asks the same of a real chain.
"""
