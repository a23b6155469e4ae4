"""Benchmarks: ``make bench``.  Not part of the test run.

They measure a paid call beside bare httpx and the official client, call by call in turn, and print
a table with bounds and verdicts.
"""
