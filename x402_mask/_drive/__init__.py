"""Performs what the conversation wants done, sync and async, for any HTTP library."""
