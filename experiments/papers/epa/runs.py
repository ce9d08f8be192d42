"""Training of small LLaMAs in topical worlds, all seeds at once."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses import make_loss
from epa_jax.theory.neural import Tree
from epa_jax.theory.study import Data, Metrics, Plan, collect, train
from epa_jax.theory.topical import topical_tree, topical_world
from epa_jax.theory.worlds import World
from epa_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: a loss and the responses it is shown.

    Attributes:
      name: as in the paper.
      loss: a key of `losses.LOSSES`.
      n_strong: strong negatives of each row.
      n_weak: weak negatives.
      values: hyperparameters besides beta.
    """

    name: str
    loss: str
    n_strong: int = 1
    n_weak: int = 0
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


METHODS = {
    method.name: method
    for method in (
        Method('DPO', 'dpo'),
        Method('IPO', 'ipo'),
        Method('KTO', 'kto', 1, 1),
        Method('NCA', 'nca', 3, 0, {'rating_temperature': 1.0}),
        Method('PL-DPO', 'pl_dpo', 3),
        Method('EPA 1:1:0', 'epa', 1, 0),
        Method('EPA 1:1:1', 'epa', 1, 1),
        Method('EPA 1:1:2', 'epa', 1, 2),
        Method('EPA 1:1:4', 'epa', 1, 4),
        Method('EPA 1:1:8', 'epa', 1, 8),
        Method('EPA 1:3:0', 'epa', 3, 0),
        Method('EPA 1:3:4', 'epa', 3, 4),
        Method('EPA 1:1:2, weight 0.1', 'epa', 1, 2, {'weight_weak': 0.1}),
    )
}


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """Worlds, references and data of several seeds, stacked on a first axis.

    Attributes:
      tree: the responses of all worlds.
      worlds: [S, ...].
      data: [S, ...].
      starts: parameters of the references, [S, ...].
      beta: that of the worlds.
    """

    tree: Tree
    worlds: World
    data: Data
    starts: Params
    beta: float

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.worlds.log_ref)

    def world(self, seed: int) -> World:
        """One of the worlds."""
        return jax.tree.map(lambda x: x[seed], self.worlds)


def make_setting(
    seeds: int,
    beta: float = 0.5,
    topical: float = 1.0,
    rows: int = 32,
    fit_steps: int = 600,
) -> Setting:
    """Topical worlds with `rows` rankings of four responses for each of 9 prompts."""
    tree = topical_tree()
    worlds, starts = zip(
        *(topical_world(tree, beta, s, topical, fit_steps) for s in range(seeds)),
        strict=True,
    )
    data = [collect(world, rows, 4, seed) for seed, world in enumerate(worlds)]
    return Setting(tree, _stack(worlds), _stack(data), _stack(starts), beta)


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *trees)


def run(
    setting: Setting, method: Method, plan: Plan, beta: float | None = None
) -> tuple[Metrics, np.ndarray]:
    """Trains a method in every world.

    Args:
      setting: the worlds.
      method: loss and negatives; they replace those of the plan.
      plan: steps and sizes.
      beta: of the loss and of r_theta; that of the worlds unless given.

    Returns:
      Metrics [S, measurements + 1]; final log-probs [S, N, M].
    """
    plan = dataclasses.replace(plan, n_strong=method.n_strong, n_weak=method.n_weak)
    beta = setting.beta if beta is None else beta
    worlds = setting.worlds.replace(beta=jnp.full(setting.seeds, beta))
    keys = jax.random.split(jax.random.key(0), setting.seeds)
    history, logps = _all_seeds(
        worlds,
        setting.data,
        setting.starts,
        keys,
        tree=setting.tree,
        loss=method.loss,
        values=tuple(sorted({'beta': beta, **method.values}.items())),
        plan=plan,
    )
    return jax.tree.map(np.asarray, history), np.asarray(logps)


@functools.partial(jax.jit, static_argnames=('tree', 'loss', 'values', 'plan'))
def _all_seeds(
    worlds: World,
    data: Data,
    starts: Params,
    keys: jax.Array,
    *,
    tree: Tree,
    loss: str,
    values: tuple[tuple[str, Any], ...],
    plan: Plan,
) -> tuple[Metrics, jax.Array]:
    """Compiled once for each loss with its values and plan."""
    made = make_loss(loss, dict(values))

    def one(world: World, data: Data, start: Params, key: jax.Array) -> Any:
        return train(tree, world, data, made, plan, start, key)

    return jax.vmap(one)(worlds, data, starts, keys)
