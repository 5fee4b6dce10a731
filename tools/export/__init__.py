"""Turns a TCBert checkpoint into a verified bundle for the worker: `PYTHONPATH=tools python -m export --help`."""
