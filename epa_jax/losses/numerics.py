"""Functions that stay finite where the textbook form overflows float32."""

import jax
import jax.numpy as jnp

EXP_CAP = 30.0


def capped_exp(x: jax.Array) -> jax.Array:
    """exp(x), continued as its tangent from x = 30 on: finite, increasing, convex."""
    top = jnp.exp(EXP_CAP)
    return jnp.where(x < EXP_CAP, jnp.exp(jnp.minimum(x, EXP_CAP)), top * (1 + x - EXP_CAP))


def inverse_power(log_p: jax.Array, alpha: float) -> jax.Array:
    """(1 - p^-alpha) / alpha from log p; its limit log p at alpha = 0."""
    if alpha == 0:
        return log_p
    near_zero = jnp.abs(alpha * log_p) < 1e-3
    exact = jnp.where(near_zero, -jnp.expm1(-alpha * jnp.where(near_zero, log_p, 0.0)), 0)
    far = 1 - capped_exp(-alpha * log_p)
    return jnp.where(near_zero, exact, far) / alpha
