"""Preference data as distributions over table rows, exact or sampled.

A `Population` lists every row that the data may hold with its probability, so the
expectation of any loss of `epa_jax.losses` is a finite sum, computed by the same function
that training calls. A finite sample is a population whose probabilities are frequencies.
"""

import itertools
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.theory.worlds import World
from epa_jax.types import Array, ResponseTable, Role


@flax.struct.dataclass
class Population:
    """R rows of K responses with their probabilities.

    Attributes:
      prompts: int [R].
      responses: int [R, K], index of each response in the world.
      roles: int8 [R, K].
      weights: float64 [R], probabilities; they sum to 1.
      ratings: float64 [R, K], or None.
      log_q: float64 [R, K], see `types.ResponseTable.log_q`, or None.
    """

    prompts: Array
    responses: Array
    roles: Array
    weights: Array
    ratings: Array | None = None
    log_q: Array | None = None

    def table(self, logps: Array, log_ref: Array) -> ResponseTable:
        """The response table of all rows under a policy, [R, K]."""
        rows = self.prompts[:, None]
        return ResponseTable(
            logps=jnp.asarray(logps)[rows, self.responses],
            ref_logps=jnp.asarray(log_ref)[rows, self.responses],
            lengths=jnp.ones(self.responses.shape, jnp.int32),
            roles=self.roles,
            ratings=self.ratings,
            log_q=self.log_q,
        )

    def loss(
        self, fn: Callable[[ResponseTable], jax.Array], logps: Array, log_ref: Array
    ) -> jax.Array:
        """Expected loss: the sum over rows of probability times loss."""
        return jnp.sum(self.weights * fn(self.table(logps, log_ref)))

    def sample(self, count: int, rng: np.random.Generator) -> 'Population':
        """`count` independent rows, as frequencies."""
        counts = rng.multinomial(count, self.weights / self.weights.sum())
        return self._only(counts > 0, counts / count)

    def _only(self, kept: np.ndarray, weights: np.ndarray) -> 'Population':
        return Population(
            self.prompts[kept],
            self.responses[kept],
            self.roles[kept],
            weights[kept],
            None if self.ratings is None else self.ratings[kept],
            None if self.log_q is None else self.log_q[kept],
        )


def bradley_terry_pairs(
    world: World, proposals: np.ndarray, deterministic: bool = False
) -> Population:
    """Pairs with labels drawn from Bradley-Terry on the true reward.

    Args:
      world: the world.
      proposals: [N, M, M], probability that i and j are shown together, given the
        prompt; symmetric. Entries on the diagonal are not shown.
      deterministic: the response of the larger reward always wins.

    Returns:
      Rows (winner, loser); prompts are equally likely.
    """
    reward = np.asarray(world.reward)
    n, m = reward.shape
    shown = proposals * ~np.eye(m, dtype=bool)
    shown = shown / shown.sum(axis=(1, 2), keepdims=True) / n
    gap = reward[:, :, None] - reward[:, None, :]
    wins = (gap > 0).astype(np.float64) if deterministic else 1 / (1 + np.exp(-gap))
    weights = (shown + shown.transpose(0, 2, 1)) * wins
    where = np.argwhere(weights > 0)
    rows = where[:, 1:]
    ratings = reward[where[:, :1], rows]
    roles = np.broadcast_to(np.array([Role.CHOSEN, Role.REJECTED], np.int8), rows.shape)
    return Population(where[:, 0], rows, roles, weights[tuple(where.T)], ratings)


def independent_pairs(log_proposal: Array) -> np.ndarray:
    """Proposals of `bradley_terry_pairs` where i and j are independent draws."""
    p = np.exp(np.asarray(log_proposal))
    return p[:, :, None] * p[:, None, :]


def best_of_all(world: World) -> Population:
    """The choice of one response among all, as the Infinite Preference Model makes it.

    p(y|x) = exp(r_true(x, y)) / sum over y' of exp(r_true(x, y')); every other response
    is REJECTED.
    """
    n, m = world.reward.shape
    chosen_first = np.array([[i, *(j for j in range(m) if j != i)] for i in range(m)])
    roles = np.full((n * m, m), Role.REJECTED, np.int8)
    roles[:, 0] = Role.CHOSEN
    weights = np.asarray(jax.nn.softmax(world.reward, axis=1)).ravel() / n
    return Population(
        np.repeat(np.arange(n), m), np.tile(chosen_first, (n, 1)), roles, weights
    )


def contrast(
    log_positive: Array, log_negative: Array, negatives: int, correct: bool = False
) -> Population:
    """A positive against independent draws of negatives: EPA 1:0:n, exactly.

    Negatives are drawn with replacement and may equal the positive, as in a batch. All
    multisets are listed with their multinomial probabilities.

    Args:
      log_positive: [N, M], log of the distribution of positives.
      log_negative: [N, M], log q, that of each negative.
      negatives: how many.
      correct: give the rows `log_q`, so that EPA corrects for q.
    """
    p, log_q = np.exp(np.asarray(log_positive)), np.asarray(log_negative)
    n, m = p.shape
    sets = np.array(list(itertools.combinations_with_replacement(range(m), negatives)))
    log_orders = [_log_orders(s) for s in sets]
    log_probability = np.array(log_orders) + log_q[:, sets].sum(axis=2)  # [N, sets]
    weights = p[:, :, None] * np.exp(log_probability)[:, None, :] / n
    x, y, s = (axis.ravel() for axis in np.indices(weights.shape))
    responses = np.concatenate([y[:, None], sets[s]], axis=1)
    roles = np.full(responses.shape, Role.WEAK, np.int8)
    roles[:, 0] = Role.CHOSEN
    rates = log_q[x[:, None], responses] if correct else None
    return Population(x, responses, roles, weights.ravel(), None, rates)


def _log_orders(multiset: np.ndarray) -> float:
    """Log of the number of orders of a multiset."""
    _, counts = np.unique(multiset, return_counts=True)
    return math.lgamma(len(multiset) + 1) - sum(math.lgamma(c + 1) for c in counts)


def with_weak(pairs: Population, log_weak: Array, negatives: int) -> Population:
    """Rows of `pairs` with independent weak negatives added: EPA 1:k:n, exactly.

    Args:
      pairs: rows of own responses.
      log_weak: [N, M], log of the distribution of each weak negative.
      negatives: how many.
    """
    log_q = np.asarray(log_weak)
    m = log_q.shape[1]
    sets = np.array(list(itertools.combinations_with_replacement(range(m), negatives)))
    orders = np.array([_log_orders(s) for s in sets])
    probability = np.exp(orders + log_q[:, sets].sum(axis=2))  # [N, sets]
    weights = pairs.weights[:, None] * probability[pairs.prompts]
    row, which = (axis.ravel() for axis in np.indices(weights.shape))
    weak_roles = np.full((len(row), negatives), Role.WEAK, np.int8)
    unrated = np.full((len(row), negatives), np.nan)
    return Population(
        pairs.prompts[row],
        np.concatenate([pairs.responses[row], sets[which]], axis=1),
        np.concatenate([pairs.roles[row], weak_roles], axis=1),
        weights.ravel(),
        None
        if pairs.ratings is None
        else np.concatenate([pairs.ratings[row], unrated], axis=1),
    )


def choices(world: World, log_pool: Array, size: int) -> Population:
    """The best of `size` independent draws, chosen by softmax of the true reward.

    Ratings are the true rewards, so that listwise losses may use them.

    Args:
      world: the world.
      log_pool: [N, M], log of the distribution of each draw.
      size: responses shown together; they may be equal.
    """
    pool = np.asarray(log_pool)
    n, m = pool.shape
    sets = np.array(list(itertools.combinations_with_replacement(range(m), size)))
    orders = np.array([_log_orders(s) for s in sets])
    probability = np.exp(orders + pool[:, sets].sum(axis=2)) / n  # [N, sets]
    rewards = np.asarray(world.reward)[:, sets]  # [N, sets, size]
    chosen = np.asarray(jax.nn.softmax(rewards, axis=2))
    weights = probability[:, :, None] * chosen
    x, s, winner = (axis.ravel() for axis in np.indices(weights.shape))
    first = np.array([[w, *(k for k in range(size) if k != w)] for w in range(size)])
    responses = np.take_along_axis(sets[s], first[winner], axis=1)
    roles = np.full(responses.shape, Role.REJECTED, np.int8)
    roles[:, 0] = Role.CHOSEN
    ratings = np.asarray(world.reward)[x[:, None], responses]
    return Population(x, responses, roles, weights.ravel(), ratings)
