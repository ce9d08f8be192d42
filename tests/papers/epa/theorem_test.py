import numpy as np

from experiments.papers.epa import theorem


def test_the_ipm_is_fitted_on_the_slope_1_line_from_every_start():
    rows = theorem.tabular(worlds=2, starts=3)
    assert len(rows) == 2 * 3 * 3
    assert max(row['worst_slope_error'] for row in rows) < 1e-3
    assert min(row['worst_pearson'] for row in rows) > 0.9999
    assert max(row['gradient_norm'] for row in rows) < 1e-8


def test_starts_do_not_matter_and_worlds_do():
    rows = theorem.tabular(worlds=2, starts=2, betas=(0.5,))
    assert np.ptp([row['worst_kl_to_optimum'] for row in rows]) < 1e-9
    assert len({(row['seed'], row['start']) for row in rows}) == 4
