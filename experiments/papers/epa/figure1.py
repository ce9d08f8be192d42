"""Figure 1: learned against true reward of every response, DPO and EPA.

Claim: DPO leaves the slope-1 line and EPA stays nearer; an extremely bad response, which
  no pair shows, gets an r_theta as small as its r_true from EPA alone.
Command: python -m experiments.papers.epa.figure1
World: as table1.py (topical); marked is the worst response of each prompt among those
  that its reference gives less than 1 in 1000. 10 seeds for the numbers, the first drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np

from epa_jax.theory.study import Plan
from epa_jax.theory.worlds import World
from experiments.papers.common import (
    COLOURS,
    arguments,
    interval,
    panels,
    save,
    write_csv,
)
from experiments.papers.epa.runs import METHODS, Setting, make_setting, run

DRAWN = {'DPO': COLOURS['DPO'], 'EPA 1:1:2': COLOURS['EPA'], 'EPA 1:1:8': COLOURS['IPM']}
PLAN = Plan(steps=500, measurements=1, lr=3e-4)
RARE = 1e-3


def worst_and_rare(world: World) -> np.ndarray:
    """Index of the worst rarely sampled response of each prompt, [N]."""
    rare = np.exp(np.asarray(world.log_ref)) < RARE
    return np.argmin(np.where(rare, np.asarray(world.reward), np.inf), axis=1)


def centred(values: np.ndarray) -> np.ndarray:
    """Less the mean over a prompt's responses."""
    return values - values.mean(axis=1, keepdims=True)


def gaps(setting: Setting, logps: np.ndarray, name: str) -> list[dict[str, Any]]:
    """By seed: how far above r_true the rare, worst responses are held, nats."""
    rows = []
    for seed in range(setting.seeds):
        world = setting.world(seed)
        gap = centred(np.asarray(world.r_theta(logps[seed]))) - centred(
            np.asarray(world.reward)
        )
        worst = np.take_along_axis(gap, worst_and_rare(world)[:, None], axis=1)
        rows.append(
            {'method': name, 'seed': seed, 'worst_response_gap': float(worst.mean())}
        )
    return rows


def draw(world: World, logps: dict[str, np.ndarray], file: Path) -> None:
    """One scatter a method, with the slope-1 line."""
    figure, axes = panels(len(logps))
    true = centred(np.asarray(world.reward))
    worst = worst_and_rare(world)[:, None]
    for ax, (name, values) in zip(axes, logps.items(), strict=True):
        learned = centred(np.asarray(world.r_theta(values)))
        share = np.exp(np.asarray(world.log_ref))
        ax.scatter(
            true, learned, s=6 + 150 * share, color=DRAWN[name], alpha=0.4, linewidths=0
        )
        ax.scatter(
            np.take_along_axis(true, worst, axis=1),
            np.take_along_axis(learned, worst, axis=1),
            s=45,
            facecolors='none',
            edgecolors='black',
            linewidths=0.9,
            label=f'worst response below 1 in {1 / RARE:.0f}',
        )
        ends = [true.min(), true.max()]
        ax.plot(ends, ends, color='black', linestyle='--', linewidth=1, label='slope 1')
        ax.set_title(name, loc='left', fontsize=10)
        ax.set_xlabel('r_true less its mean for the prompt, nats')
        ax.set_ylim(-9, 7)
    axes[0].set_ylabel('r_theta less its mean for the prompt, nats')
    axes[0].legend(frameon=False, fontsize=8, loc='upper left')
    save(figure, file)


def main() -> None:
    """Writes results/figure1.csv and figure1.png."""
    args = arguments(__file__, __doc__, seeds=10)
    setting = make_setting(args.seeds)
    logps = {name: run(setting, METHODS[name], PLAN)[1] for name in DRAWN}
    rows = [row for name in DRAWN for row in gaps(setting, logps[name], name)]
    write_csv(args.out / 'figure1.csv', rows)
    draw(setting.world(0), {k: v[0] for k, v in logps.items()}, args.out / 'figure1.png')
    for name in DRAWN:
        mean, half = interval(r['worst_response_gap'] for r in rows if r['method'] == name)
        print(f'{name}: worst rare response {mean:.2f} ± {half:.2f} nats above its r_true')


if __name__ == '__main__':
    main()
