"""Real SDKs in front of a seller that asks for money, each in a process of its own."""
