"""What a user of httpx and httpx2 may rely on, under every library, colour and plug point.

A test is one scenario, a coroutine, that gets a ``rig``: a kind of client, its payer and a shop in
memory.  The same words run it sync, under asyncio and under trio; ``Rig.seller`` gives it sockets.
"""
