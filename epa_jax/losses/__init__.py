"""Preference losses on a response table."""

from epa_jax.losses.definition import Loss, LossDef
from epa_jax.losses.make import make_loss
from epa_jax.losses.needs import check_needs, needs_ratings
from epa_jax.losses.registry import LOSSES
from epa_jax.losses.rewards import rewards

__all__ = [
    'LOSSES',
    'Loss',
    'LossDef',
    'check_needs',
    'make_loss',
    'needs_ratings',
    'rewards',
]
