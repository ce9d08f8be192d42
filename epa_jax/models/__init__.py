"""Language models: architecture, attention, forward pass."""
