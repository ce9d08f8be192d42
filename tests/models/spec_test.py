"""Sizes that contradict one another are refused."""

import dataclasses

import pytest

from epa_jax.models.spec import RopeScaling, SpecError, check_spec
from tests.tiny import SPEC


def test_consistent_sizes_pass():
    check_spec(SPEC, 'f')
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    check_spec(dataclasses.replace(SPEC, rope_scaling=scaling), 'f')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'n_kv_heads': 3}, '4 query heads cannot share 3 key-value heads'),
        ({'head_dim': 7}, 'head_dim=7; rotary embeddings need an even width'),
        ({'head_dim': 0}, 'head_dim=0'),
        ({'rope_scaling': RopeScaling(8.0, 4.0, 4.0, 64)}, 'low_freq_factor=4.0 must be'),
    ],
)
def test_contradictions_are_named(change, message):
    with pytest.raises(SpecError, match=f'^config.json: {message}'):
        check_spec(dataclasses.replace(SPEC, **change), 'config.json')
