"""Looks at a pre-training while it runs and after it."""
