import numpy as np
import pytest

from epa_jax.theory.worlds import random_world
from experiments.papers.epa import bradley_terry

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def world():
    return random_world(1, 8, 0.5, 0)


def test_dpo_cannot_tell_the_points_of_the_path_apart(world):
    path = bradley_terry.along_the_path(world, np.linspace(-2, 2, 5))
    assert np.ptp([row['dpo'] for row in path]) < 1e-9
    # a shift by t of half of the responses: t^2 / 4
    np.testing.assert_allclose(
        [row['slope1_error'] for row in path], [1, 0.25, 0, 0.25, 1], atol=1e-12
    )
    ipm = [row['ipm'] for row in path]
    assert np.argmin(ipm) == 2
    assert min(ipm[1], ipm[3]) > ipm[2] + 0.01
    assert np.ptp([row['epa_1_1_2'] for row in path]) > 0.01


def test_dpo_ends_on_the_path_wherever_it_starts(world):
    ends = bradley_terry.from_random_starts(world, 4)
    assert np.ptp([row['dpo'] for row in ends]) < 1e-9
    assert max(row['gradient_norm'] for row in ends) < 1e-9
    for row in ends:
        assert row['slope1_error'] == pytest.approx(row['shift'] ** 2 / 4, abs=1e-9)
    assert np.ptp([row['slope1_error'] for row in ends]) > 0.05


def test_the_figure_is_drawn(world, tmp_path):
    path = bradley_terry.along_the_path(world, np.linspace(-1, 1, 3))
    ends = bradley_terry.from_random_starts(world, 1)
    bradley_terry.draw(path, ends, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000
