"""What looks at images through an encoder that is not trained: tools/probe.py, tools/embed.py, and evaluations."""
