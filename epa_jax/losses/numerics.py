"""Functions that stay finite where the textbook form overflows float32."""

import jax
import jax.numpy as jnp

EXP_CAP = 30.0


def capped_exp(x: jax.Array) -> jax.Array:
    """exp(x), continued as its tangent from x = 30 on: finite, increasing, convex."""
    return 1 + capped_expm1(x)


def capped_expm1(x: jax.Array) -> jax.Array:
    """exp(x) - 1, exact near 0, continued as its tangent from x = 30 on."""
    slope = jnp.exp(EXP_CAP)
    tangent = slope * (1 + x - EXP_CAP) - 1
    return jnp.where(x < EXP_CAP, jnp.expm1(jnp.minimum(x, EXP_CAP)), tangent)


def inverse_power(log_p: jax.Array, alpha: float) -> jax.Array:
    """(1 - p^-alpha) / alpha from log p; its limit log p at alpha = 0."""
    if alpha == 0:
        return log_p
    return -capped_expm1(-alpha * log_p) / alpha
