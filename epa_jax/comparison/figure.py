"""Training curves of groups of runs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from epa_jax.comparison.runs import Group, Run

CURVES = {
    'loss': 'loss',
    'rewards/accuracies': 'accuracy in training',
    'rewards/margins': 'margin in training',
    'eval/rewards/accuracies': 'held-out accuracy',
    'eval/rewards/margins': 'held-out margin',
    'eval/sft/nll': 'held-out SFT NLL, nats a token',
    'eval/pretrain/nll': 'held-out text NLL, nats a token',
}
WINDOW = 0.05  # of a run: how far training curves are averaged


def draw(groups: Sequence[Group]) -> Figure:
    """A panel for each metric that some run has; a colour a group, a line a run."""
    runs = [run for group in groups for run in group.runs]
    names = [name for name in CURVES if any(run.curve(name)[0] for run in runs)]
    columns = min(max(len(names), 1), 4)
    lines = -(-max(len(names), 1) // columns)
    size = (4.4 * columns, 3.4 * lines + 0.3 * len(groups))
    figure = Figure(figsize=size, layout='constrained', dpi=120)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, name in zip(axes, names, strict=False):
        for i, group in enumerate(groups):
            for j, run in enumerate(group.runs):
                steps, values = _smooth(run, name)
                ax.plot(
                    steps,
                    values,
                    color=f'C{i % 10}',
                    linewidth=1.2,
                    marker='o' if len(steps) < 12 else None,
                    markersize=3,
                    label=group.label if j == 0 else None,
                )
        ax.set_title(CURVES[name], loc='left', fontsize=10)
        ax.set_xlabel('step')
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    for ax in axes[len(names) :]:
        ax.set_visible(False)
    if names:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc='outside lower left', fontsize=9)
    return figure


def _smooth(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A curve; of training, a running mean over the nearest twentieth of the run."""
    steps, values = (np.array(part, np.float64) for part in run.curve(name))
    width = int(len(values) * WINDOW)
    if name.startswith('eval/') or width < 2:
        return steps, values
    total = np.cumsum(np.concatenate([[0.0], values]))
    index = np.arange(len(values))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(low + width, len(values))
    return steps, (total[high] - total[low]) / (high - low)
