"""Truncated distributions against plain loops."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.config import ConfigError
from epa_jax.evals.sampling import Sampling, Values, choose, kept


def by_hand(logits, top_k, top_p, min_p):
    """Tokens that remain, one rule after another, likeliest first."""
    order = sorted(range(len(logits)), key=lambda v: -logits[v])
    order = order[: top_k or None]
    weights = np.exp(np.array([logits[v] for v in order]) - logits[order[0]])
    out, total = set(), 0.0
    for v, share in zip(order, weights / weights.sum(), strict=True):
        if total < top_p and weights[len(out)] >= min_p:
            out.add(v)
        total += share
    return out


@given(
    seed=st.integers(0, 10**6),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 0.999),
    min_p=st.floats(0, 0.9),
)
def test_what_remains(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(size=(2, 9)).astype(np.float32) * 2
    sampling = Sampling(1, (), top_k=top_k, top_p=top_p, min_p=min_p)
    found = np.asarray(kept(logits, Values.of(sampling)))
    for row, scores in zip(found, logits, strict=True):
        expected = by_hand(scores.astype(np.float64), top_k, top_p, min_p)
        assert set(np.flatnonzero(row)) == expected


def test_equal_logits_stay_or_go_together():
    logits = np.array([[1.0, 3.0, 1.0, 0.0]], np.float32)
    values = Values.of(Sampling(1, (), top_k=2))
    assert np.asarray(kept(logits, values)).tolist() == [[True, True, True, False]]


def test_nothing_is_cut_unless_asked():
    logits = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32) * 20
    sampling = Sampling(1, ())
    assert not sampling.truncates
    assert np.asarray(kept(logits, Values.of(sampling))).all()


def test_tokens_are_drawn_from_what_remains_in_its_proportions():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampling = Sampling(1, (), temperature=0.5, top_p=0.9)
    keys = jax.random.split(jax.random.key(0), 4000)
    found = choose(np.tile(logits, (4000, 1)), keys, Values.of(sampling), truncates=True)
    counts = np.bincount(found, minlength=4)
    # squares by the temperature: 0.25, 0.09, 0.0225, ...; 0.92 of it in the first two
    expected = np.array([0.25, 0.09, 0, 0]) / 0.34
    np.testing.assert_allclose(counts / 4000, expected, atol=0.03)
    assert counts[2] == counts[3] == 0


def test_zero_temperature_takes_the_likeliest():
    logits = np.array([[0.0, 2.0, 1.0]], np.float32)
    keys = jax.random.split(jax.random.key(0), 1)
    for changes in ({}, {'top_k': 1}, {'min_p': 0.5}):
        sampling = Sampling(1, (), temperature=0.0, **changes)
        found = choose(logits, keys, Values.of(sampling), truncates=sampling.truncates)
        assert found.tolist() == [1]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'max_new_tokens': 0}, 'max_new_tokens=0: expected 1 or more'),
        ({'temperature': -1.0}, 'temperature=-1.0: expected 0 or more'),
        ({'top_p': 0.0}, 'top_p=0.0: expected above 0'),
        ({'top_k': -1}, 'top_k=-1'),
        ({'min_p': 1.5}, 'min_p=1.5'),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**({'max_new_tokens': 1, 'stop_ids': ()} | changes))
