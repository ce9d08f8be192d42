"""The figure: what is drawn where, and that nothing hides anything."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from epa_jax.evals.linearity import linearity
from epa_jax.world import figure
from epa_jax.world.measure import Estimate, Outcome

RNG = np.random.default_rng(0)
TRUE = RNG.normal(size=(20, 6))
OWN = TRUE[:, :4]


def outcome(name, slope, kl, reward):
    r_theta = slope * TRUE + 0.1 * RNG.normal(size=TRUE.shape) + RNG.normal(size=(20, 1))
    measured = linearity(r_theta, TRUE)
    return Outcome(name, 0.5, 0.0, measured, Estimate(*kl), Estimate(*reward), r_theta)


OUTCOMES = [
    outcome('SFT', 0.0, (0.0, 0.0), (-0.1, 0.05)),
    outcome('DPO', 0.6, (0.8, 0.1), (0.7, 0.04)),
    outcome('EPA', -0.9, (1.2, 0.2), (0.9, 0.03)),
]


@pytest.fixture(scope='module')
def drawn():
    """The matplotlib figure, laid out but not written."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, 'savefig', lambda self, path: seen.append(self))
        figure.draw(None, OUTCOMES, TRUE, OWN)
    (out,) = seen
    out.draw_without_rendering()
    return out


def test_writes_a_png_of_the_stated_size_with_every_colour(tmp_path):
    path = tmp_path / 'figure.png'
    figure.draw(path, OUTCOMES, TRUE, OWN)
    assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
    pixels = matplotlib.image.imread(path)
    width, height = (figure.DPI * side for side in figure.INCHES)
    assert pixels.shape[:2] == (height, width)
    for side, colours in (
        (pixels[:, : width // 2], figure.COLOURS[1:]),
        (pixels[:, width // 2 :], figure.COLOURS),
    ):
        for colour in colours:
            distance = np.abs(side[..., :3] - to_rgba(colour)[:3]).max(axis=-1)
            assert (distance < 0.01).sum() > 20, colour


def test_every_response_is_a_point_of_its_policy_s_colour(drawn):
    points = drawn.axes[0].collections[0]
    offsets, colours = np.array(points.get_offsets()), points.get_facecolors()
    for i in (1, 2):
        own = np.isclose(colours[:, :3], to_rgba(figure.COLOURS[i])[:3]).all(axis=1)
        learned = OUTCOMES[i].r_theta
        expected = np.column_stack(
            [(a - a.mean(axis=1, keepdims=True)).ravel() for a in (TRUE, learned)]
        )
        assert own.sum() == len(expected)
        np.testing.assert_allclose(sorted(offsets[own].tolist()), sorted(expected.tolist()))


def test_the_legend_gives_each_policy_the_colour_of_its_points(drawn):
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    names = {to_rgba(figure.COLOURS[1])[:3]: 'DPO', to_rgba(figure.COLOURS[2])[:3]: 'EPA'}
    shown = {
        tuple(handle.get_facecolor()[0, :3]): label.split(',')[0]
        for handle, label in zip(handles, labels, strict=True)
        if label != 'slope 1'
    }
    assert shown == names


def test_no_policy_covers_the_other(drawn):
    colours = drawn.axes[0].collections[0].get_facecolors()
    last = colours[len(colours) // 2 :]  # drawn over the first half
    share = np.mean(np.isclose(last[:, :3], to_rgba(figure.COLOURS[1])[:3]).all(axis=1))
    assert 0.3 < share < 0.7


def test_the_dashed_line_has_slope_1(drawn):
    (line,) = drawn.axes[0].lines
    x, y = line.get_data()
    np.testing.assert_array_equal(x, y)
    assert line.get_label() == 'slope 1'


def test_policies_stand_at_their_kl_and_reward_with_their_errors(drawn):
    right = drawn.axes[1]
    for found, wanted in zip(right.containers, OUTCOMES, strict=True):
        assert found.get_label() == wanted.name
        line, _, (across, along) = found
        assert line.get_xydata().tolist() == [[wanted.kl.mean, wanted.reward.mean]]
        for bar, axis, estimate in ((across, 0, wanted.kl), (along, 1, wanted.reward)):
            ends = bar.get_segments()[0][:, axis]
            expected = [estimate.mean - estimate.error, estimate.mean + estimate.error]
            np.testing.assert_allclose(ends, expected)


def test_the_yardstick_starts_at_the_mean_and_ends_at_the_best(drawn):
    label = 'best of 1 to 4 by true reward'
    (line,) = (a for a in drawn.axes[1].lines if a.get_label() == label)
    x, y = line.get_data()
    np.testing.assert_allclose(x[[0, -1]], [0, np.log(4) - 3 / 4])
    np.testing.assert_allclose(y[[0, -1]], [OWN.mean(), OWN.max(axis=1).mean()])


def test_legends_name_all_and_lie_beside_the_axes_within_the_figure(drawn):
    for axes, names in zip(
        drawn.axes,
        [
            {'DPO, Pearson 0.98', 'EPA, Pearson -0.99', 'slope 1'},
            {'SFT', 'DPO', 'EPA', 'best of 1 to 4 by true reward'},
        ],
        strict=True,
    ):
        legend = axes.get_legend()
        assert {text.get_text() for text in legend.get_texts()} == names
        box = legend.get_window_extent()
        page = drawn.bbox
        assert box.y1 < axes.xaxis.get_tightbbox().y0
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0
    left, right = (axes.get_tightbbox() for axes in drawn.axes)
    assert left.x1 < right.x0
