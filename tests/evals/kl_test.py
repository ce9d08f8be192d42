"""KL estimates against sums over all responses."""

import numpy as np
import pytest

from epa_jax.evals import kl


@pytest.fixture
def policies():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 12))
    logits[1] = logits[0] + 0.3 * rng.normal(size=12)
    logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logps[0], logps[1]


def test_k1_and_k3_are_unbiased_and_k2_nearly(policies):
    policy, reference = policies
    ratios, probs = policy - reference, np.exp(policy)
    exact = probs @ ratios
    assert probs @ kl.k1(ratios) == pytest.approx(exact)
    assert probs @ kl.k3(ratios) == pytest.approx(exact, rel=1e-12)
    assert probs @ kl.k2(ratios) == pytest.approx(exact, rel=0.1)


def test_k3_is_never_negative_and_varies_less(policies):
    policy, reference = policies
    ratios, probs = policy - reference, np.exp(policy)
    assert (kl.k3(ratios) >= 0).all()

    def variance(x):
        return probs @ x**2 - (probs @ x) ** 2

    assert variance(kl.k3(ratios)) < variance(kl.k1(ratios)) / 5


def test_intervals_hold_the_exact_value(policies):
    policy, reference = policies
    drawn = np.random.default_rng(1).choice(12, (300, 8), p=np.exp(policy))
    exact = np.exp(policy) @ (policy - reference)
    found = kl.kl_intervals((policy - reference)[drawn])
    for name in ('k1', 'k3'):
        assert found[name].low < exact < found[name].high
    assert found['k3'].high - found['k3'].low < found['k1'].high - found['k1'].low


def test_equal_policies_have_no_kl():
    found = kl.kl_intervals(np.zeros((4, 3)))
    assert [tuple(value) for value in found.values()] == [(0.0, 0.0, 0.0)] * 3
