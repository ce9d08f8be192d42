"""Rotary position embeddings, in Hugging Face's rotate-half layout."""

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.models.spec import ModelSpec, RopeScaling


def frequencies(spec: ModelSpec) -> np.ndarray:
    """Angular frequency of each pair of coordinates: float32 [head_dim / 2], rad/token."""
    exponent = np.arange(0, spec.head_dim, 2, dtype=np.float32) / spec.head_dim
    inverse = (1.0 / spec.rope_theta**exponent).astype(np.float32)
    if spec.rope_scaling is None:
        return inverse
    return _llama3(inverse, spec.rope_scaling)


def _llama3(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Stretches long wavelengths by the factor, keeps short ones, blends between."""
    turns = scaling.original_max_positions * inverse / (2 * np.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return (keep * inverse + (1 - keep) * inverse / scaling.factor).astype(np.float32)


def cos_sin(positions_BT: jax.Array, spec: ModelSpec) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotation angles: two float32 [B, T, head_dim / 2]."""
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies(spec)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTNH: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates coordinate i together with i + head_dim / 2; the dtype is kept."""
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate(
        [first * cos - second * sin, second * cos + first * sin], axis=-1
    )
    return rotated.astype(x_BTNH.dtype)
