import numpy as np
import pytest

from experiments.papers.epa import negatives

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def exact():
    return negatives.population(seeds=2, numbers=(1, 3))


def errors(rows, sampler):
    return [row['slope1_error'] for row in rows if row['negatives'] == sampler]


def test_minimisers_are_density_ratios_for_every_number(exact):
    assert max(row['distance_to_log_p_over_q'] for row in exact) < 1e-6


def test_only_skewed_negatives_without_correction_are_biased(exact):
    assert max(errors(exact, 'uniform')) < 1e-12
    assert max(errors(exact, 'skewed, corrected')) < 1e-12
    one, three = np.reshape(errors(exact, 'skewed'), (2, 2)).T
    assert min(one) > 0.05
    np.testing.assert_allclose(one, three, rtol=1e-6)  # the number does not help


def test_on_samples_variance_falls_with_the_number_and_bias_stays(tmp_path, exact):
    rows = negatives.finite(replicates=6, positives=400, numbers=(1, 4, 16))
    for sampler in negatives.SAMPLERS:
        slope, _ = negatives.exponent(rows, sampler, 'variance')
        assert -1.8 < slope < -0.6
    biased = [row for row in rows if row['negatives'] == 'skewed']
    assert all(row['squared_error'] > 0.3 for row in biased)
    negatives.draw(exact, rows, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000
