"""Small LLaMAs trained on finite preference data, with exact metrics along the way.

The steps are those of practice (a start at the reference, minibatches, Adam, weak
negatives from other prompts); the metrics are of all responses, so they have no sampling
error.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from epa_jax.losses import Loss
from epa_jax.theory.neural import Tree
from epa_jax.theory.worlds import World, expectation, kl, slope_and_pearson
from epa_jax.types import Array, Params, ResponseTable, Role


@flax.struct.dataclass
class Data:
    """Ranked responses: R rows for each of N prompts, K responses a row.

    Attributes:
      responses: int [N, R, K], best first.
      ratings: float32 [N, R, K], falling: the true reward and noise.
    """

    responses: Array
    ratings: Array


def collect(
    world: World, rows: int, size: int, seed: int, temperature: float = 1.0
) -> Data:
    """Independent responses of the reference, ranked by Plackett-Luce.

    A rating is the true reward plus Gumbel noise, so the order is a draw from
    Plackett-Luce and, for two responses, from Bradley-Terry.

    Args:
      world: the world.
      rows: R, for each prompt.
      size: K.
      seed: of responses and noise.
      temperature: of the reference; small values narrow the support of the data.
    """
    rng = np.random.default_rng(seed)
    logits = np.asarray(world.log_ref) / temperature
    n, m = logits.shape
    noise = rng.gumbel(size=(n, rows, size, m))
    drawn = np.argmax(logits[:, None, None, :] + noise, axis=-1)
    reward = np.take_along_axis(np.asarray(world.reward), drawn.reshape(n, -1), axis=1)
    ratings = reward.reshape(drawn.shape) + rng.gumbel(size=drawn.shape)
    order = np.argsort(-ratings, axis=-1)
    return Data(
        np.take_along_axis(drawn, order, axis=-1),
        np.take_along_axis(ratings, order, axis=-1).astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a policy is trained.

    Attributes:
      n_strong: strong negatives of a row: random ones of its worse responses.
      n_weak: responses of other prompts.
      batch: rows of a step.
      steps: updates between two measurements.
      measurements: how many.
      lr: of Adam, constant.
    """

    n_strong: int = 1
    n_weak: int = 0
    batch: int = 32
    steps: int = 50
    measurements: int = 10
    lr: float = 1e-3


class Metrics(NamedTuple):
    """Exact metrics of a policy, means over prompts.

    Attributes:
      pearson: of r_theta and r_true over all responses.
      slope1_error: mean square of r_theta - r_true - C(x) over all responses.
      slope1_root: mean over prompts of its root.
      slope1_error_ref: the same with responses weighted by the reference.
      slope: of r_theta on r_true.
      kl: to the reference, nats.
      reward: expected true reward.
      kl_optimum: KL(policy || optimum), nats.
      accuracy: how often the better of two reference samples has the larger r_theta.
    """

    pearson: jax.Array
    slope1_error: jax.Array
    slope1_root: jax.Array
    slope1_error_ref: jax.Array
    slope: jax.Array
    kl: jax.Array
    reward: jax.Array
    kl_optimum: jax.Array
    accuracy: jax.Array


def measure(world: World, logps: jax.Array) -> Metrics:
    """Metrics of a policy given its log-probs of all responses, [N, M]."""
    r = world.r_theta(logps)
    gap = r - world.reward
    error = jnp.var(gap, axis=1)
    slope, pearson = slope_and_pearson(r, world.reward)
    ref = jnp.exp(world.log_ref)
    mean = jnp.sum(ref * gap, axis=1, keepdims=True)
    better = world.reward[:, :, None] > world.reward[:, None, :]
    shown = ref[:, :, None] * ref[:, None, :] * better
    right = (r[:, :, None] > r[:, None, :]) + 0.5 * (r[:, :, None] == r[:, None, :])
    found = Metrics(
        pearson=pearson,
        slope1_error=error,
        slope1_root=jnp.sqrt(error),
        slope1_error_ref=jnp.sum(ref * (gap - mean) ** 2, axis=1),
        slope=slope,
        kl=kl(logps, world.log_ref),
        reward=expectation(logps, world.reward),
        kl_optimum=kl(logps, world.log_optimum),
        accuracy=jnp.sum(shown * right, axis=(1, 2)) / jnp.sum(shown, axis=(1, 2)),
    )
    return Metrics(*(jnp.mean(value) for value in found))


def train(
    tree: Tree,
    world: World,
    data: Data,
    loss: Loss,
    plan: Plan,
    start: Params,
    key: jax.Array,
) -> tuple[Metrics, jax.Array]:
    """Trains from the reference and measures; pure, so seeds may be `jax.vmap`ped.

    Args:
      tree: the responses.
      world: reference and true rewards, float32.
      data: to train on.
      loss: of `losses.make_loss`.
      plan: sizes.
      start: parameters of the reference.
      key: of the order of rows and of negatives.

    Returns:
      Metrics [measurements + 1], the first at the start; log-probs [N, M] at the end.
    """
    optimizer = optax.adam(plan.lr)

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        params, state, carried = carry
        rows = draw(data, plan, key)
        ref = world.log_ref[rows.prompts[:, None], rows.responses]

        def mean_loss(params: Params) -> tuple[jax.Array, Any]:
            logps = tree.logps(params)[rows.prompts[:, None], rows.responses]
            table = rows.table(logps, ref)
            seen = jax.tree.map(jnp.add, carried, loss.carry(table))
            return jnp.mean(loss.fn(table, seen)), seen

        grads, carried = jax.grad(mean_loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state, carried), None

    def chunk(carry: tuple, keys: jax.Array) -> tuple[tuple, Metrics]:
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, measure(world, tree.logps(carry[0]))

    keys = jax.random.split(key, (plan.measurements, plan.steps))
    first = (start, optimizer.init(start), loss.nothing_carried())
    (params, *_), history = jax.lax.scan(chunk, first, keys)
    before = measure(world, tree.logps(start))
    history = jax.tree.map(lambda a, b: jnp.append(a[None], b), before, history)
    return history, tree.logps(params)


class Rows(NamedTuple):
    """A minibatch: `batch` rows of 1 + n_strong + n_weak responses."""

    prompts: jax.Array
    responses: jax.Array
    ratings: jax.Array
    roles: np.ndarray

    def table(self, logps: jax.Array, ref_logps: jax.Array) -> ResponseTable:
        """Its response table."""
        return ResponseTable(
            logps=logps,
            ref_logps=ref_logps,
            lengths=jnp.ones(logps.shape, jnp.int32),
            roles=self.roles,
            ratings=self.ratings,
        )


def draw(data: Data, plan: Plan, key: jax.Array) -> Rows:
    """Random rows, random worse responses of each, random responses of other prompts."""
    n, r, k = data.responses.shape
    size = (plan.batch,)
    keys = jax.random.split(key, 6)
    x = jax.random.randint(keys[0], size, 0, n)
    row = jax.random.randint(keys[1], size, 0, r)
    order = jax.vmap(functools.partial(jax.random.permutation, x=k - 1))
    worse = 1 + order(jax.random.split(keys[2], plan.batch))[:, : plan.n_strong]
    places = jnp.concatenate([jnp.zeros((plan.batch, 1), worse.dtype), worse], axis=1)
    responses, ratings = jnp.asarray(data.responses), jnp.asarray(data.ratings)
    own = responses[x[:, None], row[:, None], places]
    weak_size = (plan.batch, plan.n_weak)
    other = (x[:, None] + jax.random.randint(keys[3], weak_size, 1, max(n, 2))) % n
    weak_row = jax.random.randint(keys[4], weak_size, 0, r)
    weak_place = jax.random.randint(keys[5], weak_size, 0, k)
    weak = responses[other, weak_row, weak_place]
    roles = [Role.CHOSEN] + [Role.REJECTED] * plan.n_strong + [Role.WEAK] * plan.n_weak
    own_ratings = ratings[x[:, None], row[:, None], places]
    return Rows(
        x,
        jnp.concatenate([own, weak], axis=1),
        jnp.concatenate([own_ratings, jnp.full(weak_size, jnp.nan)], axis=1),
        np.broadcast_to(np.array(roles, np.int8), (plan.batch, len(roles))),
    )
