import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.theory.fit import minimise
from epa_jax.theory.population import bradley_terry_pairs
from epa_jax.theory.worlds import random_world
from experiments.papers.common import results_of
from experiments.papers.epa import slope1

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def rows():
    looked_at = {name: slope1.METHODS[name] for name in ('DPO', 'EPA 1:1:2')}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slope1, 'METHODS', looked_at)
        return slope1.measure(0, 1e-3) + slope1.measure(0, 0.3)


def column(rows, method, name):
    return [row[name] for row in rows if row['method'] == method]


def test_dpo_is_unbiased_and_epa_is_not(rows):
    assert max(column(rows, 'DPO', 'squared_bias')) < 1e-9
    assert min(column(rows, 'EPA 1:1:2', 'squared_bias')) > 1e-2


def test_a_thin_bridge_costs_dpo_variance_and_epa_none(rows):
    thin, wide = column(rows, 'DPO', 'variance_times_pairs')
    assert thin > 50 * wide
    thin, wide = column(rows, 'EPA 1:1:2', 'variance_times_pairs')
    assert thin < 2 * wide


def test_worlds_are_what_is_independent():
    rows = [
        {'seed': seed, 'bridge': bridge, 'method': 'DPO', 'squared_bias': float(seed)}
        for seed in (0, 1, 2)
        for bridge in (0.1, 0.2, 0.3, 0.4)
    ]
    mean, half = slope1.squared_bias(rows, 'DPO')
    assert mean == pytest.approx(1.0)
    assert half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)  # t of 2 degrees, sd 1


def test_the_page_names_the_committed_bias():
    folder = results_of(slope1.__file__)
    with (folder / 'slope1.csv').open(newline='') as file:
        rows = [
            r | {'squared_bias': float(r['squared_bias'])} for r in csv.DictReader(file)
        ]
    mean, half = slope1.squared_bias(rows, 'EPA 1:1:2')
    page = (folder.parent / 'README.md').read_text()
    assert f'bias of {mean:.2f} ± {half:.2f} nats²' in page


def test_the_sandwich_is_the_spread_of_fits_to_samples():
    world = random_world(1, 8, slope1.BETA, 0)
    pairs = bradley_terry_pairs(world, slope1.bridged(world, 0.3))
    start, count = jnp.asarray(world.log_ref), 4000
    best = minimise(slope1.expected_loss, start, world, pairs, 1.0)
    expected = np.trace(slope1.covariance(best.params, world, pairs, 1.0)) / count
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        drawn = rng.multinomial(count, pairs.weights / pairs.weights.sum()) / count
        fit = minimise(
            slope1.expected_loss, start, world, pairs.replace(weights=drawn), 1.0
        )
        r = np.asarray(world.r_theta(jax.nn.log_softmax(fit.params, axis=1)))[0]
        found.append(r - r.mean())
    spread = np.array(found).var(axis=0, ddof=1).sum()
    assert spread == pytest.approx(expected, rel=0.3)
