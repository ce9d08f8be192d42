"""The benchmark of attention's back ends, at tiny size on the CPU."""

import csv

import jax.numpy as jnp
import pytest

from benchmarks import attention


def test_back_ends_are_compared_with_float32(tmp_path):
    out = tmp_path / 'attention.csv'
    common = ['--shape=tiny', '--prompts=4', '--rows=1', '--seconds=0', f'--out={out}']
    attention.main([*common, '--dtype=bfloat16', '--backends', 'xla'])
    attention.main([*common, '--dtype=float32', '--backends', 'xla'])
    with out.open() as file:
        coarse, fine = csv.DictReader(file)
    assert 1e-4 < float(coarse['error']) < 3e-2  # 8 bits
    assert float(fine['error']) < 1e-5
    assert float(fine['milliseconds']) > 0


def test_the_error_is_that_of_the_worst_array():
    exact = [jnp.array([3.0, 4.0]), jnp.array([1.0])]
    found = [jnp.array([3.0, 4.5]), jnp.array([1.2])]
    assert attention.error(found, exact) == pytest.approx(0.2)
