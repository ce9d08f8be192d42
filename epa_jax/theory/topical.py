"""A world with topics: on-topic responses are better, and what the reference mostly says.

So responses to prompts of other topics, the weak negatives, are bad and rarely sampled:
what EPA assumes of them is true here. `topical=0` makes rewards that do not know topics,
where it is not.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.theory import neural
from epa_jax.theory.fit import descend
from epa_jax.theory.worlds import World
from epa_jax.types import Params

TOPICS = 3  # tokens 1 .. 3; token 0 ends a response
LENGTH = 3


def prompts() -> list[list[int]]:
    """Two tokens: the topic, and a manner of asking."""
    return [[topic, manner] for topic in (1, 2, 3) for manner in (1, 2, 3)]


def topical_tree(d_model: int = 32) -> neural.Tree:
    """9 prompts with the 40 responses of at most three tokens."""
    return neural.make_tree(neural.small_spec(TOPICS + 1, d_model), prompts(), LENGTH)


def target(tree: neural.Tree, seed: int, sharpness: float = 2.0) -> np.ndarray:
    """log-probs [N, M] of the policy that the reference is fitted to.

    Every token is drawn alike: its logit is `sharpness` higher for the prompt's topic,
    with normal deviations of 0.5 for each prompt.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for topic, _ in prompts():
        logits = 0.5 * rng.normal(size=TOPICS + 1)
        logits[topic] += sharpness
        logp = logits - np.log(np.exp(logits).sum())
        rows.append([logp[list(tokens)].sum() for tokens in tree.responses])
    return np.array(rows)


def fit_reference(
    tree: neural.Tree, log_target: np.ndarray, seed: int, steps: int
) -> Params:
    """A LLaMA near the target policy."""
    start = neural.random_params(tree.spec, seed, scale=2.0)
    loss = _CrossEntropy(tree)
    return descend(loss, start, jnp.asarray(log_target), steps=steps, lr=3e-3).params


@dataclasses.dataclass(frozen=True)
class _CrossEntropy:
    """Equal for equal trees, so that the fits of all seeds are one program."""

    tree: neural.Tree

    def __call__(self, params: Params, log_target: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.sum(jnp.exp(log_target) * self.tree.logps(params), axis=1))


def reward(tree: neural.Tree, seed: int, topical: float = 1.0) -> np.ndarray:
    """True rewards [N, M], nats.

    topical * (share of on-topic less off-topic tokens, times 2) + a normal value of each
    token for each prompt, summed over places + normal noise of 0.3.
    """
    rng = np.random.default_rng([seed, 1])
    rows = []
    for topic, _ in prompts():
        value = np.append(0.0, 0.5 * rng.normal(size=TOPICS))
        rows.append([_reward(tokens, topic, value, topical) for tokens in tree.responses])
    return np.array(rows) + 0.3 * rng.normal(size=(len(rows), len(tree.responses)))


def _reward(tokens: Sequence[int], topic: int, value: np.ndarray, topical: float) -> float:
    words = [token for token in tokens if token != neural.EOS]
    on_topic = [1.0 if token == topic else -1.0 for token in words]
    relevance = 2 * sum(on_topic) / len(on_topic) if words else -2.0
    return topical * relevance + float(value[list(tokens)].sum())


def topical_world(
    tree: neural.Tree, beta: float, seed: int, topical: float = 1.0, fit_steps: int = 600
) -> tuple[World, Params]:
    """The world, in float32, and the parameters of its reference."""
    params = fit_reference(tree, target(tree, seed), seed, fit_steps)
    log_ref = np.asarray(neural.logps(tree, params), np.float64)
    log_ref -= np.log(np.exp(log_ref).sum(axis=1, keepdims=True))
    world = World(
        jnp.asarray(log_ref, jnp.float32),
        jnp.asarray(reward(tree, seed, topical), jnp.float32),
        beta,
    )
    return world, params
