"""What was promised, sent and settled; the only SQL."""
