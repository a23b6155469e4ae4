"""Paying for tools over MCP, and ``x402-mask mcp``, the server for agents.

``kit`` is a seller of tools on the official SDK's server, that can be scripted and that counts the
distinct signatures it could still collect.
"""
