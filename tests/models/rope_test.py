"""Rotary embeddings against complex rotation and their defining property."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from epa_jax.models import rope
from epa_jax.models.spec import RopeScaling
from tests import tiny


def test_rotation_is_complex_multiplication():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 5, 2, 8)).astype(np.float32)
    positions = np.array([[0, 1, 5, 100, 1000]])
    got = rope.rotate(jnp.asarray(x), *rope.cos_sin(jnp.asarray(positions), tiny.SPEC))
    angles = positions[..., None] * 1e4 ** (-np.arange(0, 8, 2) / 8)
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, :, None]
    np.testing.assert_allclose(got, np.concatenate([z.real, z.imag], -1), atol=2e-4)


def test_llama3_scaling_keeps_short_and_stretches_long_wavelengths():
    spec = dataclasses.replace(tiny.SPEC, head_dim=64, rope_theta=5e5)
    scaled = dataclasses.replace(spec, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    plain, got = rope.frequencies(spec), rope.frequencies(scaled)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    np.testing.assert_array_equal(got[short], plain[short])
    np.testing.assert_allclose(got[long], plain[long] / 8, rtol=1e-6)
    between = ~short & ~long
    assert between.any()
    # the published blend, written with the wavelength
    smooth = (8192 / wavelength[between] - 1.0) / (4.0 - 1.0)
    blend = (1 - smooth) * plain[between] / 8 + smooth * plain[between]
    np.testing.assert_allclose(got[between], blend, rtol=1e-5)
