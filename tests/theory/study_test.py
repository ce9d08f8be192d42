"""The small trainer: what it draws, what it measures, that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from epa_jax.losses import make_loss
from epa_jax.theory import neural, study
from epa_jax.theory.worlds import World, random_world
from epa_jax.types import Role

WORLD = random_world(3, 5, 0.5, 0)


@pytest.fixture(scope='module')
def data():
    return study.collect(WORLD, 4000, 2, seed=0)


def test_responses_are_samples_of_the_reference(data):
    for n in range(3):
        counts = np.bincount(data.responses[n].ravel(), minlength=5)
        expected = np.exp(WORLD.log_ref[n]) * counts.sum()
        assert (
            scipy.stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue
            > 1e-3
        )


def test_labels_are_bradley_terry(data):
    won, lost = data.responses[0].T
    for i, j in ((0, 1), (2, 4)):
        first, second = np.sum((won == i) & (lost == j)), np.sum((won == j) & (lost == i))
        gap = WORLD.reward[0, i] - WORLD.reward[0, j]
        expected = 1 / (1 + np.exp(-gap))
        assert scipy.stats.binomtest(first, first + second, expected).pvalue > 1e-3
    assert np.all(data.ratings[..., 0] >= data.ratings[..., 1])


def test_a_minibatch_has_worse_own_and_foreign_responses():
    # every response is marked with its prompt, row and rank
    marks = np.arange(3 * 7 * 4).reshape(3, 7, 4)
    ratings = -np.broadcast_to(np.arange(4.0, dtype=np.float32), marks.shape)
    plan = study.Plan(n_strong=2, n_weak=3, batch=64)
    rows = study.draw(study.Data(marks, ratings), plan, jax.random.key(0))
    responses, prompts = np.asarray(rows.responses), np.asarray(rows.prompts)
    assert set(prompts.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(responses[:, :3] // 28, np.repeat(prompts[:, None], 3, 1))
    row = responses[:, :3] // 4 % 7
    assert np.all(row == row[:, :1])
    rank = responses[:, :3] % 4
    assert np.all(rank[:, 0] == 0)
    assert np.all((rank[:, 1:] > 0) & (rank[:, 1:2] != rank[:, 2:3]).repeat(2, 1))
    np.testing.assert_array_equal(rows.ratings[:, :3], -rank)
    assert np.all(responses[:, 3:] // 28 != prompts[:, None])
    assert np.isnan(rows.ratings[:, 3:]).all()
    assert set((responses[:, 3:] // 28).ravel().tolist()) == {0, 1, 2}
    assert rows.roles[0].tolist() == [Role.CHOSEN] + [Role.REJECTED] * 2 + [Role.WEAK] * 3


def test_metrics_by_hand():
    """Two equally likely responses; the policy is the optimum, then twice as far."""
    reward = np.array([[0.0, 1.0]])
    world = World(np.log([[0.5, 0.5]]), reward, 0.5)
    best = study.measure(world, jnp.asarray(world.log_optimum))
    assert float(best.slope) == pytest.approx(1, rel=1e-4)
    assert float(best.slope1_error) == pytest.approx(0, abs=1e-9)
    assert float(best.kl_optimum) == pytest.approx(0, abs=1e-6)
    assert float(best.accuracy) == 1
    far = World(world.log_ref, 2 * reward, 0.5).log_optimum
    found = study.measure(world, jnp.asarray(far))
    assert float(found.slope) == pytest.approx(2, rel=1e-4)
    # r_theta - r_true is (c, c + 1): variance 1 / 4 under both weightings
    assert float(found.slope1_error) == pytest.approx(0.25, rel=1e-4)
    assert float(found.slope1_error_ref) == pytest.approx(0.25, rel=1e-4)
    assert float(found.slope1_root) == pytest.approx(0.5, rel=1e-4)
    p = np.exp(4.0) / (1 + np.exp(4.0))
    assert float(found.reward) == pytest.approx(p, rel=1e-4)
    assert float(found.kl) == pytest.approx(
        np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p), rel=1e-4
    )
    opposite = study.measure(world, jnp.asarray(far[:, ::-1]))
    assert float(opposite.accuracy) == 0
    tied = study.measure(world, jnp.asarray(world.log_ref))
    assert float(tied.accuracy) == 0.5


def test_training_comes_nearer_to_the_optimum():
    spec = neural.small_spec(3, d_model=16, n_layers=1)
    tree = neural.make_tree(spec, [[1, 2], [2, 1]], 2)
    start = neural.random_params(spec, 0, scale=3.0)
    world = neural.neural_world(tree, start, 0.5, 1)
    world = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), world)
    plan = study.Plan(n_strong=1, n_weak=2, steps=30, measurements=4, lr=3e-3)
    loss = make_loss('epa', {'beta': 0.5})
    history, logps = study.train(
        tree, world, study.collect(world, 64, 2, 0), loss, plan, start, jax.random.key(0)
    )
    assert history.reward.shape == (5,)
    assert history.kl[0] == pytest.approx(0, abs=1e-5)
    assert history.reward[-1] > history.reward[0] + 0.1
    assert history.kl_optimum[-1] < history.kl_optimum[0] - 0.1
    np.testing.assert_allclose(np.exp(logps).sum(axis=1), 1, rtol=1e-4)
