"""Which regularisation reaches which responses, in a few hundred updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.theory.fit import minimise
from epa_jax.theory.worlds import kl, random_world
from experiments.papers.mpo import support

MARKS = (0, 300, 1000)


pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def world():
    return random_world(support.PROMPTS, support.RESPONSES, support.BETA, 0)


@pytest.fixture(scope='module')
def ends(world):
    pairs = support.shown_pairs(world)
    return {
        name: [
            support.measures(world, pairs, logps)
            for logps in support.descend(method, world, pairs, MARKS)
        ]
        for name, method in support.METHODS.items()
    }


def test_dpo_and_bare_mpo_run_away(ends):
    for name in ('DPO', 'MPO'):
        start, middle, end = ends[name]
        assert start['margin'] == pytest.approx(0, abs=1e-12)
        assert end['margin'] > middle['margin'] + 1
        assert end['forward_kl'] > middle['forward_kl'] + 1


def test_ipo_keeps_its_margin_and_whatever_unshown_responses_it_started_with(world, ends):
    _, _, here = ends['IPO']
    _, _, there = ends['IPO, other start']
    assert here['margin'] == pytest.approx(there['margin'], abs=1e-2)
    assert here['unshown'] > 2 * there['unshown']
    assert there['kl'] > 3 * here['kl']


def test_ipo_cannot_tell_policies_apart_that_differ_outside_the_pairs(world):
    value = support.objective(support.METHODS['IPO'], world, support.shown_pairs(world))
    moved = support.start(
        dataclasses.replace(support.METHODS['IPO'], unshown_odds=0.01), world
    )
    assert float(value(moved)) == pytest.approx(float(value(world.log_ref)), abs=1e-12)


def test_samples_of_the_reference_hold_mpo_wherever_it_starts(world, ends):
    _, _, here = ends['MPO + SFT 0.1']
    _, _, there = ends['MPO + SFT 0.1, other start']
    for key in support.MEASURES:
        assert here[key] == pytest.approx(there[key], abs=1e-2)
    unshown = float(jnp.exp(world.log_ref[:, support.SHOWN :]).sum(axis=1).mean())
    assert here['unshown'] == pytest.approx(unshown, abs=1e-2)
    assert here['preference_reward'] > 0.7


def test_the_stream_is_the_forward_kl_and_a_constant(world):
    bare = support.objective(support.METHODS['MPO'], world, support.shown_pairs(world))
    held = support.objective(
        support.METHODS['MPO + SFT 0.1'], world, support.shown_pairs(world)
    )
    entropy = -jnp.sum(jnp.exp(world.log_ref) * world.log_ref, axis=1).mean()
    for seed in range(3):
        logits = world.log_ref + np.random.default_rng(seed).normal(size=world.reward.shape)
        logps = jax.nn.log_softmax(logits, axis=1)
        added = float(held(logits) - bare(logits)) / 0.1
        assert added == pytest.approx(float(kl(world.log_ref, logps).mean() + entropy))


def test_the_descent_ends_where_a_minimiser_ends(world):
    method, pairs = support.METHODS['MPO + SFT 0.1'], support.shown_pairs(world)
    value = support.objective(method, world, pairs)
    (end,) = support.descend(method, world, pairs, (3000,))
    fit = minimise(value, support.start(method, world))
    best = jax.nn.log_softmax(fit.params, axis=1)
    np.testing.assert_allclose(np.exp(end), np.exp(best), atol=1e-3)


def test_rows_and_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(
        support, 'METHODS', {key: support.METHODS[key] for key in ('DPO', 'MPO')}
    )
    rows = support.run(2, (0, 5))
    assert [(r['method'], r['seed'], r['steps']) for r in rows] == [
        (name, seed, steps)
        for seed in (0, 1)
        for name in ('DPO', 'MPO')
        for steps in (0, 5)
    ]
    support.draw(rows, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000
