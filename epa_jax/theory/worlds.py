"""Worlds of N prompts with M enumerable responses each, and what is exact in them.

Arrays are [N, M], float64 under `jax.enable_x64`, log-probabilities in nats. r_theta
always is beta * log(pi_theta / pi_ref).
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.types import Array


@flax.struct.dataclass
class World:
    """A reference policy and a true reward over all responses.

    Attributes:
      log_ref: [N, M], log pi_ref(y|x); each row sums to 1 as probabilities.
      reward: [N, M], r_true(x, y), nats.
      beta: price of a nat of KL in the RLHF objective, and scale of r_theta.
    """

    log_ref: Array
    reward: Array
    beta: float

    @property
    def log_partition(self) -> Array:
        """Log Z(x) = log sum_y pi_ref(y|x) exp(r_true(x, y) / beta), [N]."""
        return jax.nn.logsumexp(self.log_ref + self.reward / self.beta, axis=1)

    @property
    def log_optimum(self) -> Array:
        """Log pi*(y|x), the optimum of the RLHF objective (arXiv:2412.13862, Eq. 1)."""
        return self.log_ref + self.reward / self.beta - self.log_partition[:, None]

    def r_theta(self, logps: Array) -> Array:
        """Beta * log(pi_theta / pi_ref) of every response."""
        return self.beta * (logps - self.log_ref)

    def objective(self, logps: Array) -> Array:
        """E[r_true] - beta * KL(pi_theta || pi_ref), [N]; beta * log Z at the optimum."""
        return expectation(logps, self.reward) - self.beta * kl(logps, self.log_ref)


def random_world(
    prompts: int, responses: int, beta: float, seed: int, spread: float = 1.0
) -> World:
    """Reference logits and true rewards drawn from normal distributions.

    Args:
      prompts: N.
      responses: M.
      beta: see `World`.
      seed: of both.
      spread: standard deviation of reference logits and of rewards.
    """
    rng = np.random.default_rng(seed)
    logits, reward = spread * rng.normal(size=(2, prompts, responses))
    return World(np.asarray(jax.nn.log_softmax(logits, axis=1)), reward, beta)


def expectation(logps: Array, values: Array) -> Array:
    """sum_y pi(y|x) f(x, y), [N]."""
    return jnp.sum(jnp.exp(logps) * values, axis=1)


def kl(logps: Array, other: Array) -> Array:
    """KL(pi || other), [N], nats."""
    return expectation(logps, logps - other)


def slope_and_pearson(r_theta: Array, reward: Array) -> tuple[Array, Array]:
    """Least-squares slope of r_theta on r_true, and their correlation, by prompt: [N]."""
    x = reward - jnp.mean(reward, axis=1, keepdims=True)
    y = r_theta - jnp.mean(r_theta, axis=1, keepdims=True)
    xx, xy, yy = (jnp.sum(product, axis=1) for product in (x * x, x * y, y * y))
    return xy / xx, xy / jnp.sqrt(xx * yy)
