"""What needs no socket or database: money, policy, challenges, wallets, the conversation itself.

``hand`` drives a conversation effect by effect, so that each effect can be named and made to fail.
Every test here is quick; hypothesis runs without a clock and without chance.
"""
