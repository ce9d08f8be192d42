"""Log-probs of given responses, outside a training run."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from epa_jax import logprobs, sharding
from epa_jax.data import packing
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import PackedBatch, Params, Role, TokenGroup

ROWS = 16  # rows of a batch


class ScoreError(RuntimeError):
    """Responses that cannot be scored; the message says which and why."""


class Scores(NamedTuple):
    """What a model says of K responses to each of N prompts.

    Attributes:
      logps: float32 [N, K], log pi(y|x) summed over tokens, nats; NaN where a prompt has
        fewer responses.
      greedy: bool [N, K]; greedy decoding would give the response. None unless asked.
    """

    logps: np.ndarray
    greedy: np.ndarray | None


def score(
    params: Params,
    spec: ModelSpec,
    compute: transformer.Compute,
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
    *,
    greedy: bool = False,
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> Scores:
    """Scores every response; the prompt of several is read once.

    Args:
      params: as `transformer.abstract_params` describes them.
      spec: architecture.
      compute: dtype and back end.
      prompts: N arrays of token ids, none empty.
      responses: arrays of token ids for each prompt, at least one, none empty; end of
        sequence included where it belongs to the response.
      greedy: find out what greedy decoding would give, at the cost of another pass over
        the vocabulary.
      mesh: where the parameters live; None is one device.
      rows: most rows computed together on each batch device.

    Raises:
      ScoreError: a prompt and a response are longer than the model reads, or the model
        gives NaN.
    """
    _check_lengths(spec, prompts, responses)
    groups = [
        _group(i, prompt, answers)
        for i, (prompt, answers) in enumerate(zip(prompts, responses, strict=True))
    ]
    columns = max(len(answers) for answers in responses)
    logps = np.full((len(groups), columns), np.nan, np.float32)
    hits = np.zeros((len(groups), columns), bool)
    for batch in packed(groups, columns, rows, mesh):
        out = _scores(params, batch, spec=spec, compute=compute, greedy=greedy, mesh=mesh)
        keys, found, hit = jax.device_get(out)
        keys = keys.reshape(-1)
        logps[keys[keys >= 0]] = found[keys >= 0]
        if greedy:
            hits[keys[keys >= 0]] = hit[keys >= 0]
    absent = np.arange(columns) >= np.array([[len(answers)] for answers in responses])
    broken = np.argwhere(np.isnan(logps) & ~absent)
    if len(broken):
        raise ScoreError(
            f'the model gives NaN for {len(broken)} of {np.sum(~absent)} responses (first: '
            f'prompt {broken[0][0]}, response {broken[0][1]}); its weights are not finite'
        )
    return Scores(np.where(absent, np.nan, logps), hits & ~absent if greedy else None)


def _check_lengths(
    spec: ModelSpec,
    prompts: Sequence[np.ndarray],
    responses: Sequence[Sequence[np.ndarray]],
) -> None:
    for i, (prompt, answers) in enumerate(zip(prompts, responses, strict=True)):
        longest = len(prompt) + max(len(answer) for answer in answers)
        if longest > spec.max_positions:
            raise ScoreError(
                f'prompt {i} and its longest response have {longest} tokens, the model '
                f'reads {spec.max_positions}; cut them, or drop what is longer'
            )


def _group(key: int, prompt: np.ndarray, answers: Sequence[np.ndarray]) -> TokenGroup:
    roles = np.full(len(answers), Role.REJECTED, np.int8)
    return TokenGroup(
        key, prompt, tuple(answers), roles, np.full(len(answers), np.nan, np.float32)
    )


def packed(
    groups: Sequence[TokenGroup], columns: int, rows: int, mesh: Mesh | None
) -> Iterator[PackedBatch]:
    """Batches of one shape that hold all groups, on the mesh.

    Args:
      groups: one or more.
      columns: most responses of a group.
      rows: most rows computed together on each batch device.
      mesh: the devices; None is one.
    """
    layout = _layout([group.num_tokens for group in groups], columns, rows, mesh)
    for batch in packing.pack(groups, layout, row_slice=packing.own_rows(layout)):
        yield batch if mesh is None else sharding.place_batch(mesh, batch)


def _layout(
    sizes: Sequence[int], columns: int, rows: int, mesh: Mesh | None
) -> packing.Layout:
    """Rows for the largest group, and no more of them than the groups fill."""
    ways = 1 if mesh is None else sharding.batch_devices(mesh)
    length = packing.automatic_row_length(max(sizes))
    one = packing.Layout(1, length, max(length // min(sizes), 1), columns)
    needed = -(-len(packing.plan(sizes, one)) // ways)
    return packing.Layout(
        min(rows, needed) * ways, length, one.groups_per_row, one.responses
    )


@functools.partial(jax.jit, static_argnames=('spec', 'compute', 'greedy', 'mesh'))
def _scores(
    params: Params,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
    greedy: bool,
    mesh: Mesh | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Keys of the prompts with what was found, whole on every process."""
    hits = None
    if greedy:
        logps, hits = logprobs.greedy_responses(params, batch, spec=spec, compute=compute)
    else:
        logps = logprobs.response_table(params, batch, spec=spec, compute=compute).logps
    out = (batch.keys, logps, hits)
    if mesh is None:
        return out
    return jax.lax.with_sharding_constraint(out, sharding.replicated(mesh))
