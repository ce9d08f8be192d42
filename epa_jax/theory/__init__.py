"""Finite worlds in which every response can be enumerated, on the losses of training."""
