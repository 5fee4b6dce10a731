"""Turns a TCBert checkpoint into a verified bundle for the worker: `python -m tools.export --help`."""
