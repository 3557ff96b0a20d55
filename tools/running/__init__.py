"""Runs a plan of tools as processes, for tools/demo.py and tools/reproduce.py: jobs, output, signals, going on."""
