"""Offline preference alignment for language models, in JAX and Flax."""

import os

# transformers is here for its tokenizers: that PyTorch is absent is no news. This is
# the first code of the package that runs, and transformers reads it when imported.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

__version__ = '0.1.0'
