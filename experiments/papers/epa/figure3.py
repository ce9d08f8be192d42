"""Figure 3: the KL-reward frontier of DPO and EPA 1:1:2, and their training dynamics.

Claim: at equal KL to the reference EPA earns more true reward than DPO.
Command: python -m experiments.papers.epa.figure3
World: as table1.py (topical). Swept over beta and training time; the exact frontier, that
  of pi*, is drawn too. 5 seeds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epa_jax.theory.study import Plan
from epa_jax.theory.worlds import World, expectation, kl
from experiments.papers.common import (
    COLOURS,
    arguments,
    interval,
    panels,
    save,
    write_csv,
)
from experiments.papers.epa.runs import METHODS, Setting, make_setting, run

DRAWN = {'DPO': COLOURS['DPO'], 'EPA 1:1:2': COLOURS['EPA']}
BETAS = (0.125, 0.25, 0.5, 1.0, 2.0)
PLAN = Plan(steps=50, measurements=12, lr=3e-4)
Row = dict[str, Any]


def sweep(setting: Setting, plan: Plan, betas: Sequence[float]) -> list[Row]:
    """KL and reward of every method, beta, seed and measurement."""
    rows: list[Row] = []
    for name in DRAWN:
        for beta in betas:
            history, _ = run(setting, METHODS[name], plan, beta)
            for seed in range(setting.seeds):
                for i in range(plan.measurements + 1):
                    rows.append(
                        {
                            'method': name,
                            'beta': beta,
                            'seed': seed,
                            'step': i * plan.steps,
                            'kl': float(history.kl[seed, i]),
                            'reward': float(history.reward[seed, i]),
                        }
                    )
    return rows


def exact_frontier(setting: Setting, points: int = 60) -> list[Row]:
    """KL and reward of pi* for prices of KL from low to high, means over worlds."""
    rows = []
    for price in np.geomspace(0.05, 50, points):
        found = []
        for seed in range(setting.seeds):
            world = setting.world(seed)
            best = World(world.log_ref, world.reward, float(price)).log_optimum
            values = kl(best, world.log_ref), expectation(best, world.reward)
            found.append([float(np.mean(v)) for v in values])
        mean = np.mean(found, axis=0)
        rows.append({'price': float(price), 'kl': mean[0], 'reward': mean[1]})
    return rows


def shortfall(rows: list[Row], setting: Setting) -> list[Row]:
    """By method and seed: mean over runs of how far reward is below the exact frontier.

    The frontier of the same world at the same KL; over all betas and measurements with a
    KL between 0.2 nats and 1.2 nats, which both methods reach.
    """
    out = []
    prices = np.geomspace(0.02, 50, 200)
    for seed in range(setting.seeds):
        world = setting.world(seed)
        best = [World(world.log_ref, world.reward, float(p)).log_optimum for p in prices]
        x = [float(np.mean(kl(b, world.log_ref))) for b in best][::-1]
        y = [float(np.mean(expectation(b, world.reward))) for b in best][::-1]
        for name in DRAWN:
            mine = [
                row
                for row in rows
                if (row['method'], row['seed']) == (name, seed) and 0.2 < row['kl'] < 1.2
            ]
            gaps = [np.interp(row['kl'], x, y) - row['reward'] for row in mine]
            out.append({'method': name, 'seed': seed, 'shortfall': float(np.mean(gaps))})
    return out


def draw(rows: list[Row], frontier: list[Row], beta: float, file: Path) -> None:
    """The frontier, then KL and reward against steps."""
    figure, (left, middle, right) = panels(3)
    left.plot(
        [row['kl'] for row in frontier],
        [row['reward'] for row in frontier],
        color=COLOURS['exact'],
        linewidth=1.2,
        label='exact optimum',
    )
    steps = sorted({row['step'] for row in rows})
    betas = sorted({row['beta'] for row in rows})
    for name, colour in DRAWN.items():
        for b in betas:
            kls, rewards = (_means(rows, name, b, key)[0] for key in ('kl', 'reward'))
            label = name if b == betas[0] else None
            left.plot(kls, rewards, color=colour, marker='o', markersize=3, linewidth=0.8,
                      alpha=0.8, label=label)  # fmt: skip
        for ax, key in ((middle, 'reward'), (right, 'kl')):
            mean, half = _means(rows, name, beta, key)
            ax.plot(steps, mean, color=colour, label=name)
            ax.fill_between(
                steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0
            )
    most = 1.15 * max(row['kl'] for row in rows)
    left.set_xlim(-0.05, min(most, 2.0))
    left.set_xlabel('KL to the reference, nats')
    left.set_ylabel('expected true reward')
    left.set_title(f'Frontier: beta {betas[0]} to {betas[-1]}', loc='left', fontsize=10)
    middle.set_title(f'Reward, beta {beta}', loc='left', fontsize=10)
    right.set_title(f'KL to the reference, beta {beta}', loc='left', fontsize=10)
    for ax in (middle, right):
        ax.set_xlabel('steps')
    left.legend(frameon=False, fontsize=8)
    save(figure, file)


def _means(rows: list[Row], name: str, beta: float, key: str) -> tuple[Any, Any]:
    steps = sorted({row['step'] for row in rows})
    values = [
        interval(
            row[key]
            for row in rows
            if (row['method'], row['beta'], row['step']) == (name, beta, step)
        )
        for step in steps
    ]
    mean, half = np.array(values).T
    return mean, half


def main() -> None:
    """Writes results/figure3*.csv and figure3.png."""
    args = arguments(__file__, __doc__, seeds=5)
    setting = make_setting(args.seeds)
    rows = sweep(setting, PLAN, BETAS)
    frontier = exact_frontier(setting)
    write_csv(args.out / 'figure3.csv', rows)
    write_csv(args.out / 'figure3_exact.csv', frontier)
    draw(rows, frontier, 0.5, args.out / 'figure3.png')
    below = shortfall(rows, setting)
    write_csv(args.out / 'figure3_shortfall.csv', below)
    by = {n: {r['seed']: r['shortfall'] for r in below if r['method'] == n} for n in DRAWN}
    for name, values in by.items():
        mean, half = interval(values.values())
        print(f'{name}: reward {mean:.3f} ± {half:.3f} below the exact frontier, equal KL')
    mean, half = interval(by['DPO'][s] - by['EPA 1:1:2'][s] for s in by['DPO'])
    print(f'EPA 1:1:2 is {mean:.3f} ± {half:.3f} nearer to it than DPO')


if __name__ == '__main__':
    main()
