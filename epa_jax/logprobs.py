"""From hidden states to token log-probs at response positions to the response table.

The vocabulary is met by `chunk` tokens of every row at a time, forward and backward, so
no array of shape [B, T, V] exists in either pass.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import PackedBatch, Params, ResponseTable, Role


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_logps(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    chunk: int,
) -> jax.Array:
    """Log-probability of each target token, with log-softmax in float32.

    Args:
      hidden_BSD: state that predicts each target; S is a multiple of `chunk`.
      head_VD: output head.
      targets_BS: int32, target tokens.
      count: int32 []; positions from `count` on are padding in every row. Chunks of
        padding cost nothing.
      chunk: positions of each row that meet the vocabulary at once.

    Returns:
      float32 [B, S]; 0 in chunks that hold only padding.
    """
    return _forward(hidden_BSD, head_VD, targets_BS, count, chunk)[0]


def _logits(hidden: jax.Array, head_VD: jax.Array) -> jax.Array:
    """[B, C, V] in float32; the product itself runs in the dtype of the hidden states."""
    head = head_VD.astype(hidden.dtype)
    return jnp.einsum('bcd,vd->bcv', hidden, head, preferred_element_type=jnp.float32)


def _slice(x: jax.Array, start: jax.Array, chunk: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1)


def _write(x: jax.Array, update: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, update.astype(x.dtype), start, axis=1)


def _forward(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and log normalisers, both float32 [B, S]."""

    def body(i: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        logps, normalisers = carry
        logits = _logits(_slice(hidden_BSD, i * chunk, chunk), head_VD)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        targets = _slice(targets_BS, i * chunk, chunk)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        logps = _write(logps, chosen - normaliser, i * chunk)
        return logps, _write(normalisers, normaliser, i * chunk)

    zeros = jnp.zeros(targets_BS.shape, jnp.float32)
    return jax.lax.fori_loop(0, _num_chunks(count, chunk), body, (zeros, zeros))


def _num_chunks(count: jax.Array, chunk: int) -> jax.Array:
    return (count + chunk - 1) // chunk


def _vjp_forward(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    chunk: int,
) -> tuple[jax.Array, tuple]:
    logps, normalisers = _forward(hidden_BSD, head_VD, targets_BS, count, chunk)
    return logps, (hidden_BSD, head_VD, targets_BS, count, normalisers)


def _vjp_backward(chunk: int, residuals: tuple, grad_BS: jax.Array) -> tuple:
    """Uses d log p / d logits = onehot(target) - softmax(logits), one chunk at a time."""
    hidden_BSD, head_VD, targets_BS, count, normalisers_BS = residuals
    dtype = hidden_BSD.dtype

    def body(i: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        grad_hidden, grad_head = carry
        start = i * chunk
        hidden = _slice(hidden_BSD, start, chunk)
        normaliser = _slice(normalisers_BS, start, chunk)
        targets = _slice(targets_BS, start, chunk)
        probs = jnp.exp(_logits(hidden, head_VD) - normaliser[..., None])
        hit = targets[..., None] == jnp.arange(head_VD.shape[0])
        grad_logits = (hit - probs) * _slice(grad_BS, start, chunk)[..., None]
        grad_logits = grad_logits.astype(dtype)
        back = jnp.einsum('bcv,vd->bcd', grad_logits, head_VD.astype(dtype))
        grad_head += jnp.einsum(
            'bcv,bcd->vd', grad_logits, hidden, preferred_element_type=jnp.float32
        )
        return _write(grad_hidden, back, start), grad_head

    zeros = (jnp.zeros_like(hidden_BSD), jnp.zeros(head_VD.shape, jnp.float32))
    grads = jax.lax.fori_loop(0, _num_chunks(count, chunk), body, zeros)
    return grads[0], grads[1].astype(head_VD.dtype), None, None


token_logps.defvjp(_vjp_forward, _vjp_backward)


def token_collisions(
    hidden_BSD: jax.Array, head_VD: jax.Array, count: jax.Array, chunk: int
) -> jax.Array:
    """Log sum_v p(v)^2 of each predicted distribution; no gradient is defined.

    Args:
      hidden_BSD: state that predicts; S is a multiple of `chunk`.
      head_VD: output head.
      count: as in `token_logps`.
      chunk: likewise.

    Returns:
      float32 [B, S]; 0 in chunks that hold only padding.
    """

    def collision(logits: jax.Array) -> jax.Array:
        squares = jax.nn.logsumexp(2 * logits, axis=-1)
        return squares - 2 * jax.nn.logsumexp(logits, axis=-1)

    return _reduce_logits(hidden_BSD, head_VD, count, chunk, collision)


def token_likeliest(
    hidden_BSD: jax.Array, head_VD: jax.Array, count: jax.Array, chunk: int
) -> jax.Array:
    """The likeliest token of each predicted distribution, the first one of several.

    Args: as `token_collisions`.

    Returns:
      int32 [B, S]; 0 in chunks that hold only padding.
    """

    def likeliest(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1)

    return _reduce_logits(hidden_BSD, head_VD, count, chunk, likeliest, jnp.int32)


def _reduce_logits(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    count: jax.Array,
    chunk: int,
    reduce: Callable[[jax.Array], jax.Array],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> jax.Array:
    """`reduce` of the logits [B, C, V] of every chunk: [B, S]; 0 in chunks of padding."""

    def body(i: jax.Array, out: jax.Array) -> jax.Array:
        logits = _logits(_slice(hidden_BSD, i * chunk, chunk), head_VD)
        return _write(out, reduce(logits), i * chunk)

    zeros = jnp.zeros(hidden_BSD.shape[:2], dtype)
    return jax.lax.fori_loop(0, _num_chunks(count, chunk), body, zeros)


@dataclasses.dataclass(frozen=True)
class _Scored:
    """What predicts the scored tokens, in a length that chunks divide."""

    hidden: jax.Array
    targets: jax.Array
    valid: jax.Array
    count: jax.Array
    chunk: int


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
    chunk = min(compute.logprob_chunk, valid.shape[1])
    positions, targets, valid = (
        _pad_to(x, chunk) for x in (batch.score_positions, batch.score_targets, valid)
    )
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    return _Scored(hidden, targets, valid, jnp.max(jnp.sum(valid, axis=1)), chunk)


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
    logps_BS = token_logps(scored.hidden, head, scored.targets, scored.count, scored.chunk)
    logps_BS = jnp.where(scored.valid, logps_BS, 0.0)[:, : batch.score_slots.shape[1]]
    if tail_weight != 1:
        logps_BS *= jnp.where(_in_tail(batch), tail_weight, 1.0)
    rows, groups, responses = batch.roles.shape

    def flat(x: jax.Array) -> jax.Array:
        return jnp.reshape(x, (rows * groups, responses))

    log_collision = None
    if collision:
        hidden, head = jax.lax.stop_gradient((scored.hidden, head))
        values = token_collisions(hidden, head, scored.count, scored.chunk)
        values = jnp.where(scored.valid, values, 0.0)[:, : batch.score_slots.shape[1]]
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
    size = batch.score_slots.shape[1]
    logps = token_logps(scored.hidden, head, scored.targets, scored.count, scored.chunk)
    found = token_likeliest(scored.hidden, head, scored.count, scored.chunk)
    other = scored.valid & (found != scored.targets)
    sums = _sum_by_slot(jnp.where(scored.valid, logps, 0.0)[:, :size], batch)
    misses = _sum_by_slot(other[:, :size].astype(jnp.int32), batch)
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
