"""Effective samples of the log q correction."""

import numpy as np
import pytest

from experiments.papers.epa import correction, storyteller


def test_equal_probabilities_leave_every_sample_and_rare_ones_leave_one():
    log_q = np.array([[-5.0] * 4, [-900.0, -5.0, -5.0, -5.0], [-700.0, -700.0, 0.0, 0.0]])
    np.testing.assert_allclose(correction.effective_samples(log_q), [4, 1, 2])


def test_longer_answers_leave_fewer_samples(shared_data):
    folder = shared_data / 'stories260k'
    if not folder.is_dir():
        pytest.skip('needs ../shared/data/stories260k')
    teller = storyteller.load_teller(str(folder), len)
    short, long = correction.measure(teller, (1, 40), 8, 6)
    assert 6 >= short['effective'] > long['effective'] >= 1
