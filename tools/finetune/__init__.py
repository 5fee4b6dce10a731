"""Prompt-based fine-tuning of a checkpoint on labelled documents, straight to a bundle: `python -m tools.finetune --help`."""
