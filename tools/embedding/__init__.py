"""What tools/embed.py is made of."""
