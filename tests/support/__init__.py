"""What the tests of several folders stand on: sellers, chains, databases, processes, fixtures.

``seller`` is the scripted seller that keeps an adversary's books; ``README.md`` of ``tests`` says
what else is here.  No test is in this folder.
"""
