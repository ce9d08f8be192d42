"""Log-probs of given responses, outside a training run."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from epa_jax.data import packing
from epa_jax.logprobs import response_table
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import PackedBatch, Params, Role, TokenGroup

ROWS = 16  # rows of a batch


def score(
    params: Params,
    spec: ModelSpec,
    compute: transformer.Compute,
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
) -> np.ndarray:
    """Log pi(y|x) of every response, summed over its tokens.

    Args:
      params: as `transformer.abstract_params` describes them.
      spec: architecture.
      compute: dtype and back end.
      prompts: N arrays of token ids.
      responses: K arrays of token ids for each prompt, none empty; end of sequence
        included where it belongs to the response.

    Returns:
      float32 [N, K], nats.
    """
    groups = [
        _group(i, prompt, answers)
        for i, (prompt, answers) in enumerate(zip(prompts, responses, strict=True))
    ]
    sizes = [group.num_tokens for group in groups]
    length = packing.automatic_row_length(max(sizes))
    columns = len(responses[0])
    layout = packing.Layout(ROWS, length, max(length // min(sizes), 1), columns)
    out = np.full((len(groups), columns), np.nan, np.float32)
    for batch in packing.pack(groups, layout):
        keys = batch.keys.reshape(-1)
        logps = jax.device_get(_logps(params, batch, spec=spec, compute=compute))
        out[keys[keys >= 0]] = logps[keys >= 0]
    return out


def _group(key: int, prompt: np.ndarray, answers: Sequence[np.ndarray]) -> TokenGroup:
    roles = np.full(len(answers), Role.REJECTED, np.int8)
    return TokenGroup(
        key, prompt, tuple(answers), roles, np.full(len(answers), np.nan, np.float32)
    )


@functools.partial(jax.jit, static_argnames=('spec', 'compute'))
def _logps(
    params: Params,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> jax.Array:
    return response_table(params, batch, spec=spec, compute=compute).logps
