"""Comparisons with transformers on PyTorch; marked `parity`."""
