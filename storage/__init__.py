"""What the node holds: bytes, index and work."""
