"""A small world whose true reward is known, for the quickstart."""
