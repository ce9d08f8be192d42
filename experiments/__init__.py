"""Configurations: values only, one run each."""
