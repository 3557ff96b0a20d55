"""Runs a plan of tools as processes, for tools/demo.py, compare.py, reproduce.py: jobs, output, signals, going on."""
