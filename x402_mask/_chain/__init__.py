"""Asking and telling a chain; frees nothing early on one endpoint's word."""
