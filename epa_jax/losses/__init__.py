"""Preference losses on a response table."""

from epa_jax.losses.registry import LOSSES, Loss, LossDef, check_needs, make_loss
from epa_jax.losses.rewards import rewards

__all__ = ['LOSSES', 'Loss', 'LossDef', 'check_needs', 'make_loss', 'rewards']
