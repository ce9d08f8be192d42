"""What runs reached, as points: reward against KL, r_theta against ratings, tasks."""

import json
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epa_jax.comparison.frontier import draw_on, from_json
from epa_jax.comparison.runs import Group, Run, read_rewards

SHOWN = 3000  # points of a panel of rewards

Panel = Callable[[Axes], None]


def draw(groups: Sequence[Group]) -> Figure | None:
    """A panel for each frontier, for each group's rewards, and for tasks.

    They are drawn of what `epa_jax.frontier`, `epa_jax.intrinsic` and `epa_jax.evaluate`
    left in the runs' evals/; None if that is nothing.
    """
    panels = [*_frontiers(groups), *_rewards(groups), *_tasks(groups)]
    if not panels:
        return None
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    size = (4.6 * columns, 4.0 * lines)
    figure = Figure(figsize=size, layout='constrained', dpi=120)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        panel(ax)
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return figure


def _frontiers(groups: Sequence[Group]) -> list[Panel]:
    """Runs measured by one reward on the same prompts share a panel."""
    found: dict[str, list] = {}
    titles = {}
    for group in groups:
        for run in group.runs:
            saved = run.evals.get('frontier')
            if saved is None:
                continue
            key = json.dumps(saved['measured'], sort_keys=True)
            titles[key] = f'reward: {saved["measured"]["reward"]}'
            points = found.setdefault(key, [])
            mine = from_json(saved, group.label, str(run.folder))
            points += [p for p in mine if p not in points]  # references repeat

    def panel(key: str) -> Panel:
        def on(ax: Axes) -> None:
            draw_on(ax, found[key])
            ax.set_title(titles[key], loc='left', fontsize=10)

        return on

    return [panel(key) for key in found]


def _rewards(groups: Sequence[Group]) -> list[Panel]:
    """The implicit reward against ratings, each less its mean over the prompt."""

    def panel(index: int, group: Group, runs: Sequence[Run]) -> Panel:
        def on(ax: Axes) -> None:
            parts = [read_rewards(run.folder) for run in runs]
            points = np.concatenate([part for part in parts if part is not None], axis=1)
            shown = points[:, :: -(-points.shape[1] // SHOWN)]
            ax.plot(*shown, '.', color=f'C{index % 10}', markersize=3, alpha=0.4)
            ends = np.array([points[0].min(), points[0].max()])
            ax.plot(ends, ends, color='black', linewidth=1, label='slope 1')
            ax.set_xlabel('rating less its mean over the prompt')
            ax.set_ylabel('r_theta, likewise')
            ax.set_title(group.label, loc='left', fontsize=10)
            ax.legend(frameon=False, fontsize=8)

        return on

    out = []
    for index, group in enumerate(groups):
        runs = [run for run in group.runs if read_rewards(run.folder) is not None]
        if runs:
            out.append(panel(index, group, runs))
    return out


def _tasks(groups: Sequence[Group]) -> list[Panel]:
    """What was learnt against what was kept: a point a run."""
    name = 'eval/rewards/accuracies'
    found: list[tuple[int, str, float, float]] = []
    for index, group in enumerate(groups):
        for run in group.runs:
            tasks = (run.evals.get('tasks') or {}).get('tasks', {})
            last = (run.summary or {}).get('eval_last') or {}
            if tasks and last.get(name) is not None:
                mean = float(np.mean([task['accuracy'] for task in tasks.values()]))
                found.append((index, group.label, float(last[name]), mean))
    if len(found) < 2:
        return []

    def on(ax: Axes) -> None:
        for index, label in dict.fromkeys((i, label) for i, label, _, _ in found):
            mine = [(x, y) for i, _, x, y in found if i == index]
            ax.plot(*zip(*mine, strict=True), 'o', color=f'C{index % 10}', label=label)
        ax.set_xlabel('accuracy on held-out preferences')
        ax.set_ylabel('accuracy on tasks, mean over tasks')
        ax.set_title('learnt and kept', loc='left', fontsize=10)
        ax.legend(frameon=False, fontsize=8)

    return [on]
