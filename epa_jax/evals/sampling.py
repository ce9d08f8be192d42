"""From logits to the next token: temperature and truncation of the distribution."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.config import ConfigError
from epa_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn; truncation is applied in the order of the attributes.

    Attributes:
      max_new_tokens: tokens after which a response is cut off.
      stop_ids: tokens that end a response; each stays in it.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep this many of the likeliest tokens, and ties; 0 keeps all.
      top_p: keep the fewest likeliest tokens with this probability together.
      min_p: keep tokens of at least this share of the likeliest one's probability.

    References:
      Nucleus sampling (top_p), 2019, arXiv:1904.09751; min-p, 2024, arXiv:2407.01082.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values that draw nothing.

        Raises:
          ConfigError: a value out of range.
        """
        for name, value, fits, wanted in (
            ('max_new_tokens', self.max_new_tokens, self.max_new_tokens > 0, '1 or more'),
            ('temperature', self.temperature, self.temperature >= 0, '0 or more'),
            ('top_k', self.top_k, self.top_k >= 0, '0 (all) or more'),
            ('top_p', self.top_p, 0 < self.top_p <= 1, 'above 0, at most 1 (all)'),
            ('min_p', self.min_p, 0 <= self.min_p <= 1, '0 (all) to 1'),
        ):
            if not fits:
                raise ConfigError(f'{name}={value}: expected {wanted}')

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


class Values(NamedTuple):
    """The numbers of a `Sampling`, so that changing one compiles nothing."""

    temperature: Array
    top_k: Array
    top_p: Array
    min_p: Array

    @classmethod
    def of(cls, sampling: Sampling) -> 'Values':
        """As scalars."""
        return cls(
            np.float32(sampling.temperature),
            np.int32(sampling.top_k),
            np.float32(sampling.top_p),
            np.float32(sampling.min_p),
        )


def choose(
    logits_BV: jax.Array, keys_B: jax.Array, values: Values, *, truncates: bool
) -> jax.Array:
    """A token for each row, int32 [B].

    Args:
      logits_BV: float32.
      keys_B: random keys.
      values: of the sampling.
      truncates: whether to sort the vocabulary, which only truncation needs.
    """
    hot = values.temperature > 0
    scaled = logits_BV / jnp.where(hot, values.temperature, 1.0)
    if truncates:
        scaled = jnp.where(kept(scaled, values), scaled, -jnp.inf)
    drawn = jax.vmap(jax.random.categorical)(keys_B, scaled)
    return jnp.where(hot, drawn, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)


def kept(logits_BV: jax.Array, values: Values) -> jax.Array:
    """Tokens that may be drawn, bool [B, V]; of equal logits all or none."""
    falling = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    size = falling.shape[-1]
    last = jnp.where(values.top_k > 0, jnp.minimum(values.top_k, size), size) - 1
    low = jnp.take_along_axis(falling, jnp.full((len(falling), 1), last), axis=-1)
    stays = falling >= low
    probs = jax.nn.softmax(jnp.where(stays, falling, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs  # of all likelier tokens together
    enough = jnp.where(values.top_p < 1, values.top_p, jnp.inf)  # sums may round to 1
    inside = jnp.where(stays & (before < enough), falling, jnp.inf)
    low = jnp.maximum(low, jnp.min(inside, axis=-1, keepdims=True))
    share = falling[:, :1] + jnp.log(values.min_p)
    return logits_BV >= jnp.maximum(low, share)
