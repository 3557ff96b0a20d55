"""What looks at images through an encoder that is not trained: tools/probe.py, tools/embed.py, and evaluations."""

POOLS = ("mean", "class")
"""What an image is described by: the mean of its patch tokens, or the class token."""
