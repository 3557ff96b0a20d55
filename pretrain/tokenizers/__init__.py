"""Codebooks and the token ids of patches."""
