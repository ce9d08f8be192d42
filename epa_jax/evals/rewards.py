"""Rewards of whole conversations, by a reward model."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.evals.scoring import ROWS, packed
from epa_jax.formats.reward_model import load_reward_model, load_reward_spec
from epa_jax.formats.tokenizer import check_vocabulary, load_tokenizer
from epa_jax.logprobs import packed_states
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.types import Message, PackedBatch, Params, Role, TokenGroup

# conversations that end with a response -> a reward for each; any function of this type
# serves where a reward model does
Reward = Callable[[Sequence[Sequence[Message]]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A decoder with a score head; calling it gives rewards.

    Attributes:
      spec: architecture of the decoder.
      params: of the decoder.
      score: float32 [D], the head.
      tokenizer: of the model, with a chat template.
      compute: dtype and back end.
      mesh: where the parameters live.
      rows: most rows computed together on each batch device.
    """

    spec: ModelSpec
    params: Params
    score: np.ndarray
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    mesh: Mesh
    rows: int = ROWS

    def __call__(self, conversations: Sequence[Sequence[Message]]) -> np.ndarray:
        """Reward of each conversation, float32 [N]: the score of its last token.

        Raises:
          ConfigError: a conversation that is longer than the model reads.
        """
        if not conversations:
            return np.zeros(0, np.float32)
        texts = [
            self.tokenizer.apply_chat_template(
                [message._asdict() for message in conversation], tokenize=False
            )
            for conversation in conversations
        ]
        found = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        return self.of_tokens([np.array(ids, np.int32) for ids in found['input_ids']])

    def of_tokens(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Likewise of token ids, two or more each."""
        longest = max(len(ids) for ids in sequences)
        if longest > self.spec.max_positions:
            raise ConfigError(
                f'a conversation of {longest} tokens is longer than the '
                f'{self.spec.max_positions} that the reward model reads'
            )
        out = np.full(len(sequences), np.nan, np.float32)
        groups = [_group(i, ids) for i, ids in enumerate(sequences)]
        for batch in packed(groups, 1, self.rows, self.mesh):
            keys, values = jax.device_get(
                _rewards(
                    self.params,
                    self.score,
                    batch,
                    spec=self.spec,
                    compute=self.compute,
                    mesh=self.mesh,
                )
            )
            out[keys[keys >= 0]] = values[keys >= 0]
        return out


def _group(key: int, ids: np.ndarray) -> TokenGroup:
    roles, ratings = np.array([Role.CHOSEN], np.int8), np.array([np.nan], np.float32)
    return TokenGroup(key, ids[:1], (ids[1:],), roles, ratings)


@functools.partial(jax.jit, static_argnames=('spec', 'compute', 'mesh'))
def _rewards(
    params: Params,
    score_D: jax.Array,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: Compute,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Keys [B, G] and the score of each group's last token, float32 [B, G]."""
    hidden = packed_states(params, batch, spec=spec, compute=compute)
    groups = jnp.arange(1, batch.keys.shape[1] + 1)
    mine = batch.segments[:, None, :] == groups[:, None]  # [B, G, T]
    index = jnp.arange(batch.tokens.shape[1])
    last = jnp.max(jnp.where(mine, index, 0), axis=-1)
    states = jnp.take_along_axis(hidden, last[..., None], axis=1).astype(jnp.float32)
    out = (batch.keys, states @ score_D)
    return jax.lax.with_sharding_constraint(out, sharding.replicated(mesh))


def open_reward_model(
    path: Path,
    mesh: Mesh,
    *,
    dtype: str = 'float32',
    tokenizer: Path | None = None,
    rows: int = ROWS,
) -> RewardModel:
    """Loads a LLaMA or Mistral for sequence classification with one label.

    Args:
      path: a Hugging Face folder.
      mesh: the devices.
      dtype: of parameters and products; the score is float32.
      tokenizer: a folder; that of the model unless given.
      rows: see `RewardModel`.

    Raises:
      FormatError, SpecError: as `formats.reward_model.load_reward_model`.
      ConfigError: a tokenizer without a chat template.
    """
    shapes = transformer.abstract_params(load_reward_spec(path), dtype)
    axes = transformer.logical_axes(load_reward_spec(path))
    where = sharding.param_shardings(mesh, shapes, axes)
    spec, params, score = load_reward_model(path, dtype, where)
    found = load_tokenizer(tokenizer or path)
    check_vocabulary(found, spec)
    if found.chat_template is None:
        raise ConfigError(
            f'{tokenizer or path}: the tokenizer has no chat template, so it is not known '
            'how the reward model reads a conversation; save one with it'
        )
    compute = Compute(dtype=dtype, mesh=mesh)
    return RewardModel(spec, params, score, found, compute, mesh, rows)
