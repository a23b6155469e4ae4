"""Hashes, typed data and signatures: arithmetic alone."""
