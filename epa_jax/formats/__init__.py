"""Checkpoint and tokenizer files, in and out."""
