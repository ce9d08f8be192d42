"""From hidden states to token log-probs at response positions to the response table.

Only tokens of responses meet the vocabulary (`epa_jax.vocabulary`).
"""

import dataclasses

import jax
import jax.numpy as jnp

from epa_jax import sharding
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import PackedBatch, Params, ResponseTable, Role
from epa_jax.vocabulary import Blocks, token_collisions, token_likeliest, token_logps


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What predicts the scored tokens, in a length that chunks divide.

    Attributes:
      hidden: [R, C, D], R rows of C places, those that are scored first.
      targets: int32 [R, C].
      valid: bool [R, C]; False is padding.
      count: int32 [], places from there on are padding in every row.
      blocks: how much meets the vocabulary at once.
      places: int32 [B * S], where each place of the batch is in the rows; None where rows
        are those of the batch, with padding behind them.
    """

    hidden: jax.Array
    targets: jax.Array
    valid: jax.Array
    count: jax.Array
    blocks: Blocks
    places: jax.Array | None

    def in_batch(self, values_RC: jax.Array, shape: tuple[int, int]) -> jax.Array:
        """Values in the order of the batch, [B, S]."""
        if self.places is None:
            return values_RC[:, : shape[1]]
        return values_RC.ravel()[self.places].reshape(shape)


def packed_states(
    params: Params,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> jax.Array:
    """The decoder's output [B, T, D] for a micro-batch, in the compute dtype."""
    shared = batch.roles.shape[2] > 1  # with one response, segments say it all
    return transformer.hidden_states(
        params,
        batch.tokens,
        batch.positions,
        batch.segments,
        batch.branches if shared else None,
        spec=spec,
        compute=compute,
    )


def _scored(
    params: Params, batch: PackedBatch, spec: ModelSpec, compute: transformer.Compute
) -> _Scored:
    hidden = packed_states(params, batch, spec=spec, compute=compute)
    valid = batch.score_slots < batch.lengths[0].size
    chunk = min(compute.logprob_chunk or valid.shape[1], valid.shape[1])
    positions, targets, places = batch.score_positions, batch.score_targets, None
    if len(valid) > 1 and not _split(compute):
        # one row of all that is scored: chunks then skip all that is not
        chunk *= len(valid)
        starts = jnp.arange(len(valid))[:, None] * hidden.shape[1]
        hidden = hidden.reshape(1, -1, hidden.shape[2])
        order = jnp.argsort(~jnp.ravel(valid), stable=True)
        places = jnp.argsort(order)
        positions, targets, valid = (
            jnp.take(x, order)[None] for x in (positions + starts, targets, valid)
        )
    positions, targets, valid = (_pad_to(x, chunk) for x in (positions, targets, valid))
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    blocks = Blocks(chunk, compute.vocab_block, compute.mesh)
    count = jnp.max(jnp.sum(valid, axis=1))
    return _Scored(hidden, targets, valid, count, blocks, places)


def _split(compute: transformer.Compute) -> bool:
    """Whether devices share the rows of a batch."""
    return compute.mesh is not None and sharding.batch_devices(compute.mesh) > 1


def _pad_to(x_BS: jax.Array, multiple: int) -> jax.Array:
    return jnp.pad(x_BS, ((0, 0), (0, -x_BS.shape[1] % multiple)))


def response_table(
    params: Params,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
    tail_weight: float = 1.0,
    collision: bool = False,
) -> ResponseTable:
    """The table of a micro-batch: N = B * G prompts, empty places included.

    Log-probs are sums over response tokens, in float32.

    Args:
      params: of the model.
      batch: a micro-batch.
      spec: architecture.
      compute: how to compute.
      tail_weight: weight of the tokens of a response past the length of the shortest one
        of its prompt's own (chosen and strong) responses; length-desensitised DPO,
        arXiv:2409.06411.
      collision: fill `log_collision`, at the cost of another pass over the vocabulary.
    """
    scored = _scored(params, batch, spec, compute)
    head = transformer.head_weights(params)
    logps_BS = token_logps(scored.hidden, head, scored.targets, scored.count, scored.blocks)
    logps_BS = jnp.where(scored.valid, logps_BS, 0.0)
    logps_BS = scored.in_batch(logps_BS, batch.score_slots.shape)
    if tail_weight != 1:
        logps_BS *= jnp.where(_in_tail(batch), tail_weight, 1.0)
    rows, groups, responses = batch.roles.shape

    def flat(x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (rows * groups, responses))

    log_collision = None
    if collision:
        hidden, head = jax.lax.stop_gradient((scored.hidden, head))
        values = token_collisions(hidden, head, scored.count, scored.blocks)
        values = jnp.where(scored.valid, values, 0.0)
        values = scored.in_batch(values, batch.score_slots.shape)
        mean = flat(_sum_by_slot(values, batch)) / jnp.maximum(flat(batch.lengths), 1)
        log_collision = mean
    return ResponseTable(
        logps=flat(_sum_by_slot(logps_BS, batch)),
        ref_logps=None if batch.ref_logps is None else flat(batch.ref_logps),
        lengths=flat(batch.lengths),
        roles=flat(batch.roles),
        ratings=flat(batch.ratings),
        log_collision=log_collision,
    )


def greedy_responses(
    params: Params,
    batch: PackedBatch,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs of all responses, and whether greedy decoding would give them.

    Args: as `response_table`.

    Returns:
      float32 [N, K] and bool [N, K]; True in empty places.
    """
    scored = _scored(params, batch, spec, compute)
    head = transformer.head_weights(params)
    size = batch.score_slots.shape
    logps = token_logps(scored.hidden, head, scored.targets, scored.count, scored.blocks)
    found = token_likeliest(scored.hidden, head, scored.count, scored.blocks)
    other = scored.valid & (found != scored.targets)
    logps = scored.in_batch(jnp.where(scored.valid, logps, 0.0), size)
    sums = _sum_by_slot(logps, batch)
    misses = _sum_by_slot(scored.in_batch(other, size).astype(jnp.int32), batch)
    shape = (-1, batch.roles.shape[2])
    return sums.reshape(shape), misses.reshape(shape) == 0


def _sum_by_slot(values_BS: jax.Array, batch: PackedBatch) -> jax.Array:
    """Sums over the scored tokens of each response, [B, G * K]."""
    slots = batch.lengths[0].size
    sums = jax.vmap(lambda v, s: jax.ops.segment_sum(v, s, num_segments=slots))
    return sums(values_BS, batch.score_slots)


def _in_tail(batch: PackedBatch) -> jax.Array:
    """Scored tokens past the shortest own response of their prompt: bool [B, S]."""
    own = (batch.roles == Role.CHOSEN) | (batch.roles == Role.REJECTED)
    longest = jnp.iinfo(jnp.int32).max
    shortest = jnp.min(jnp.where(own, batch.lengths, longest), axis=2, keepdims=True)
    limits = jnp.broadcast_to(shortest, batch.lengths.shape).reshape(len(own), -1)
    slots = jnp.minimum(batch.score_slots, limits.shape[1] - 1)
    limit = jnp.take_along_axis(limits, slots, axis=1)
    return _place_in_response(batch.score_slots) >= limit


def _place_in_response(slots_BS: jax.Array) -> jax.Array:
    """How many scored tokens of the same response come before each; they are adjacent."""
    index = jnp.broadcast_to(jnp.arange(slots_BS.shape[1]), slots_BS.shape)
    starts = jnp.pad(slots_BS[:, 1:] != slots_BS[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)
