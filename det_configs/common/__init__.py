"""What the detection configs have in common."""
