"""Figure 4: a margin m_c on the strong negatives, for DPO and EPA.

Claim: a margin does not do for DPO what weak negatives do.
Command: python -m experiments.papers.epa.figure4
World: as table1.py (topical). 5 seeds.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epa_jax.theory.study import Plan
from experiments.papers.common import (
    COLOURS,
    arguments,
    band,
    panels,
    save,
    write_csv,
)
from experiments.papers.epa.runs import METHODS, Setting, make_setting, run

DRAWN = {'DPO': COLOURS['DPO'], 'EPA 1:1:2': COLOURS['EPA']}
MARGINS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
MEASURES = {
    'pearson': 'Pearson coefficient',
    'slope1_error': 'slope-1 error, nats²',
    'reward': 'expected true reward',
    'kl': 'KL to the reference, nats',
}
PLAN = Plan(steps=500, measurements=1, lr=3e-4)


def sweep(setting: Setting, plan: Plan, margins: Sequence[float]) -> list[dict[str, Any]]:
    """Every method, margin and seed at the end of training."""
    rows = []
    for name in DRAWN:
        for margin in margins:
            method = dataclasses.replace(METHODS[name], values={'margin': margin})
            history, _ = run(setting, method, plan)
            for seed in range(setting.seeds):
                row = {'method': name, 'margin': margin, 'seed': seed}
                rows.append(
                    row | {key: float(getattr(history, key)[seed, -1]) for key in MEASURES}
                )
    return rows


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Each measure against the margin, with 95 % intervals over seeds."""
    figure, axes = panels(len(MEASURES))
    margins = sorted({row['margin'] for row in rows})
    for ax, (key, title) in zip(axes, MEASURES.items(), strict=True):
        for name, colour in DRAWN.items():
            mine = [row for row in rows if row['method'] == name]
            at = [[row[key] for row in mine if row['margin'] == m] for m in margins]
            band(ax, margins, at, colour, name)
        ax.set_title(title, loc='left', fontsize=10)
        ax.set_xlabel('margin m_c, nats')
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, file)


def main() -> None:
    """Writes results/figure4.csv and figure4.png."""
    args = arguments(__file__, __doc__, seeds=5)
    rows = sweep(make_setting(args.seeds), PLAN, MARGINS)
    write_csv(args.out / 'figure4.csv', rows)
    draw(rows, args.out / 'figure4.png')


if __name__ == '__main__':
    main()
