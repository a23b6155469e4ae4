"""The MCP server for agents: a marketplace within the limits of its owner."""
