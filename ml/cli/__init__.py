"""The command line: `python -m ml`."""
