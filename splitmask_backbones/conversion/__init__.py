"""Weights of other projects into encoder files and back: files, layouts, families, export, proof."""
