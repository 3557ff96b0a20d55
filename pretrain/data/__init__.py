"""From image files to what a method is fed."""
