"""What sellers write: bytes to records and back; pure, bounded."""
