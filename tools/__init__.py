"""Command-line tools. They are run from a checkout: ``python tools/NAME.py``."""
