"""Tests of epa_jax.formats."""
