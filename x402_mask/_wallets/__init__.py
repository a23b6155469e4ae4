"""The only keys."""
