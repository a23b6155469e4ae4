"""Payment tokens of a marketplace: bought once, held safely, spent first, in every colour.

``bazaar`` is a marketplace written from the public documents alone, with books of its own, that can
be scripted before and after each step; ``shop`` buys there and checks what must hold every time.
"""
