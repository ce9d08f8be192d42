"""Figure 5: the surfaces of the DPO, EPA and IPM functionals over the space of rewards.

Claim: DPO's functional has a valley of minimisers, the IPM's a single one, the truth.
  EPA's is not flat along the valley, but where a response can be a weak negative and no
  pair lets it win, its minimum lies at minus infinity (theory.md, 4).
Command: python -m experiments.papers.epa.figure5
World: one prompt, three responses, so that rewards up to a constant are a plane. Pairs
  show responses 0 and 1 only; weak negatives are uniform over all three.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.energy import epa, ipm
from epa_jax.losses.pairwise import dpo
from epa_jax.theory.population import best_of_all, bradley_terry_pairs, with_weak
from epa_jax.theory.worlds import World
from experiments.papers.common import COLOURS, arguments, panels, save, write_csv

BETA = 1.0
WORLD = World(np.log([[0.5, 0.3, 0.2]]), np.array([[0.0, 1.0, -1.5]]), BETA)
SPAN = 4.0


def functionals() -> dict[str, Any]:
    """Name -> population loss of log-probs."""
    shown = np.zeros((1, 3, 3))
    shown[0, 0, 1] = shown[0, 1, 0] = 0.5
    pairs = bradley_terry_pairs(WORLD, shown)
    weak = with_weak(pairs, np.full((1, 3), -np.log(3)), 2)
    return {
        'DPO': functools.partial(pairs.loss, functools.partial(dpo, beta=BETA)),
        'EPA 1:1:2': functools.partial(weak.loss, functools.partial(epa, beta=BETA)),
        'IPM': functools.partial(
            best_of_all(WORLD).loss, functools.partial(ipm, beta=BETA)
        ),
    }


def surface(points: int) -> dict[str, np.ndarray]:
    """Losses [points, points] over offsets of r(1) - r(0), r(2) - r(0) from the truth."""
    offsets = np.linspace(-SPAN, SPAN, points)
    grid = np.stack(np.meshgrid(offsets, offsets, indexing='ij'), axis=-1).reshape(-1, 2)
    rewards = WORLD.reward + np.concatenate([np.zeros((len(grid), 1)), grid], axis=1)
    logps = jax.nn.log_softmax(WORLD.log_ref + rewards / BETA, axis=1)[:, None, :]
    out = {'offsets': offsets}
    for name, loss in functionals().items():
        values = jax.vmap(lambda x, loss=loss: loss(x, WORLD.log_ref))(jnp.asarray(logps))
        out[name] = np.asarray(values).reshape(points, points)
    return out


def lines(found: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The losses along the two axes through the true reward."""
    offsets, middle = found['offsets'], len(found['offsets']) // 2
    rows = []
    for i, offset in enumerate(offsets):
        for axis in (1, 2):
            at = (i, middle) if axis == 1 else (middle, i)
            values = {name: float(found[name][at]) for name in found if name != 'offsets'}
            rows.append({'response': axis, 'offset': float(offset), **values})
    return rows


def draw(found: dict[str, np.ndarray], file: Path) -> None:
    """A contour plot each, and the line along the response that no pair shows."""
    names = [name for name in found if name != 'offsets']
    figure, axes = panels(len(names) + 1)
    offsets = found['offsets']
    colours = (COLOURS['DPO'], COLOURS['EPA'], COLOURS['IPM'])
    for ax, name, colour in zip(axes, names, colours, strict=False):
        excess = found[name] - found[name].min()
        ax.contourf(offsets, offsets, excess, levels=24, cmap='Greys')
        least = excess <= 1e-3
        ax.contour(offsets, offsets, least, levels=[0.5], colors=[colour], linewidths=1.5)
        ax.plot(0, 0, marker='+', color='black', markersize=10)
        ax.set_title(f'{name}: within 0.001 of the least', loc='left', fontsize=10)
        ax.set_xlabel('response 2 (never shown), offset from the truth')
        middle = len(offsets) // 2
        line = found[name][middle]
        axes[-1].plot(offsets, line - line.min(), color=colour, label=name)
    axes[0].set_ylabel('response 1, offset from the truth')
    axes[-1].set_title('Along the response that no pair shows', loc='left', fontsize=10)
    axes[-1].set_xlabel('offset from the truth, nats')
    axes[-1].legend(frameon=False, fontsize=8)
    save(figure, file)


def main() -> None:
    """Writes results/figure5.csv and figure5.png."""
    args = arguments(__file__, __doc__)
    with jax.enable_x64(True):
        found = surface(161)
    write_csv(args.out / 'figure5.csv', lines(found))
    draw(found, args.out / 'figure5.png')


if __name__ == '__main__':
    main()
