"""Whatever breaks, wherever: nothing is paid twice, nothing is lost, no cap is passed.

Calls are cut at every effect (``tests.support.faults``), interrupted at every line (``lines``),
killed (``killing``), run from many processes (``processes``), and random lives are compared with a
chain (``bazaar``).  The long forms of these are in ``tests/soak``.
"""
