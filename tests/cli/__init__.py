"""The command line: what is sent, what comes out on both streams, and every exit code.

``conftest.Cli`` runs a command in a home of its own: called, in this process, which is quick;
``alone``, in a process of its own; ``interrupted``, with Ctrl-C.
"""
