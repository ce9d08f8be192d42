import matplotlib.image
import numpy as np
import pytest

from epa_jax.losses import registry
from epa_jax.losses.curves import curve, draw
from epa_jax.losses.make import make_loss


def test_dpo_is_drawn_as_the_logistic_loss():
    margins = np.linspace(-3, 3, 7)
    values, slopes = curve(make_loss('dpo', {}), margins)
    np.testing.assert_allclose(values, np.log1p(np.exp(-margins)), rtol=1e-5)
    np.testing.assert_allclose(slopes, -1 / (1 + np.exp(margins)), rtol=1e-4)


@pytest.mark.parametrize('name', ['simpo', 'sigmoid_norm'])
def test_means_over_tokens_share_the_axis(name):
    """Both are the logistic loss of the margin, shifted by gamma."""
    gamma = 0.5 if name == 'simpo' else 0.0
    margins = np.array([-1.0, 0.0, 2.0])
    values, _ = curve(make_loss(name, {}), margins)
    np.testing.assert_allclose(values, np.log1p(np.exp(gamma - margins)), rtol=1e-4)


def test_the_figure_is_drawn(tmp_path, monkeypatch):
    shown = {name: registry.LOSSES[name] for name in ('epa', 'dpo', 'ipo', 'kto', 'simpo')}
    monkeypatch.setattr('epa_jax.losses.curves.LOSSES', shown)
    draw(tmp_path / 'losses.png')
    image = matplotlib.image.imread(tmp_path / 'losses.png')
    assert image.shape[1] > 1500
    assert image.std() > 0.05
