"""A marketplace's documents, and its services with types."""
