"""What the losses share: who plays which role in a table, and log-ratio rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from epa_jax.types import Array, ResponseTable, Role


class Masks(NamedTuple):
    """Boolean [N, K] by role; all False for a prompt without a CHOSEN response."""

    chosen: jax.Array
    strong: jax.Array
    weak: jax.Array

    @property
    def own(self) -> jax.Array:
        """Responses to the prompt itself: chosen and strong negatives."""
        return self.chosen | self.strong


def role_masks(table: ResponseTable) -> Masks:
    """Responses by role, leaving out padding prompts.

    Raises:
      ValueError: the table's arrays are not all of one shape [N, K].
    """
    shapes = {jnp.shape(a) for a in jax.tree.leaves(table)}
    if len(shapes) != 1 or jnp.ndim(table.logps) != 2:
        raise ValueError(f'response table: expected one shape [N, K], found {shapes}')
    roles = jnp.asarray(table.roles)
    real = jnp.any(roles == Role.CHOSEN, axis=1, keepdims=True)
    return Masks(
        roles == Role.CHOSEN,
        real & (roles == Role.REJECTED),
        real & (roles == Role.WEAK),
    )


def log_ratios(table: ResponseTable) -> jax.Array:
    """Log pi(y_k|x) - log pi_ref(y_k|x), sums over the response's tokens.

    Args:
      table: response table with a reference.

    Returns:
      float32 [N, K], nats; exactly 0, with zero gradient, where the role is PAD and for
      prompts without CHOSEN.

    Raises:
      ValueError: the table has no reference.
    """
    if table.ref_logps is None:
        raise ValueError(
            'this loss needs reference log-probs and the table has none; set '
            "reference.mode to 'cached' or 'in_step', or choose a reference-free loss"
        )
    masks = role_masks(table)
    present = masks.own | masks.weak
    # Masked before any arithmetic: padding may hold inf or NaN, and 0 * NaN in the
    # backward pass is NaN.
    return keep(table.logps, present) - keep(table.ref_logps, present)


def rewards(table: ResponseTable, beta: float = 0.1) -> jax.Array:
    """Log-ratio rewards.

    r_k = beta * (log pi(y_k|x) - log pi_ref(y_k|x)), sums over the response's tokens.

    Args:
      table: response table with a reference.
      beta: inverse temperature.

    Returns:
      float32 [N, K], in nats; exactly 0, with zero gradient, where the role is PAD and
      for prompts without CHOSEN.

    Raises:
      ValueError: the table has no reference.

    References:
      Rafailov et al., Direct Preference Optimization, 2023, arXiv:2305.18290, Eq. 5,
      without the term in Z(x); arXiv:2412.13862, Eq. 2.
    """
    return beta * log_ratios(table)


def implicit_rewards(
    table: ResponseTable, beta: float = 1.0, mean_over_tokens: bool = False
) -> jax.Array:
    """The rewards to report: of log-ratios, or of log-probs when there is no reference.

    Args:
      table: response table, with or without a reference.
      beta: inverse temperature.
      mean_over_tokens: divide by the response's length, as SimPO does.

    Returns:
      float32 [N, K]; 0 where the role is PAD.
    """
    if table.ref_logps is not None:
        values = log_ratios(table)
    else:
        values = keep(table.logps, jnp.asarray(table.roles) != Role.PAD)
    if mean_over_tokens:
        values /= jnp.maximum(table.lengths, 1)
    return beta * values


def chosen_value(values: Array, masks: Masks) -> jax.Array:
    """The chosen response's entry, [N, 1]; 0 for padding prompts."""
    return jnp.sum(keep(values, masks.chosen), axis=1, keepdims=True)


def keep(values: Array, mask: jax.Array) -> jax.Array:
    """The values where the mask is True, else 0."""
    return jnp.where(mask, values, 0.0)


def mean_over(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean of [N, K] over the mask, by prompt: [N]; 0 for a prompt without any."""
    count = jnp.sum(mask, axis=1)
    return jnp.sum(keep(values, mask), axis=1) / jnp.maximum(count, 1)
