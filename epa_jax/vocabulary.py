"""What tokens see of the vocabulary, a block of words and a chunk of tokens at a time.

No array holds all tokens or all words: logits exist for `chunk` positions of each row and
`block` words, forward and backward. Words are the outer loop, so the gradient of each
block of the head is summed over tokens in place and written once.

W is the number of shards of the vocabulary, V = W * n words; other letters as in
`epa_jax.types`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.models.contract import product


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How much is computed at once.

    Attributes:
      chunk: positions of each row.
      block: words of each shard.
      mesh: the devices; None is the default device.
    """

    chunk: int
    block: int
    mesh: Mesh | None = None

    @property
    def shards(self) -> int:
        """Over which the mesh splits the vocabulary."""
        return 1 if self.mesh is None else sharding.ways(self.mesh, 'vocab')

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Places an array on the mesh by logical axis names."""
        return x if self.mesh is None else sharding.constrain(x, axes, self.mesh)


@dataclasses.dataclass(frozen=True)
class _Words:
    """One block of words: rows of the head, their ids, and which were not yet visited.

    The last block ends with the vocabulary and may overlap the one before.
    """

    head_WID: jax.Array
    ids_WI: jax.Array
    fresh_I: jax.Array
    start: jax.Array

    def logits(self, hidden_BCD: jax.Array) -> jax.Array:
        """Float32 [B, C, W * I]; -inf for words visited before."""
        logits = jnp.einsum(
            'bcd,wid->bcwi', hidden_BCD, self.head_WID, preferred_element_type=jnp.float32
        )
        logits = jnp.where(self.fresh_I, logits, -jnp.inf)
        return logits.reshape(*logits.shape[:2], -1)

    def hits(self, targets_BC: jax.Array) -> jax.Array:
        """Bool [B, C, W * I]: the word is the target."""
        return targets_BC[..., None] == jnp.where(self.fresh_I, self.ids_WI, -1).ravel()


def _words(head_VD: jax.Array, dtype: Any, i: jax.Array, blocks: Blocks) -> _Words:
    words = head_VD.shape[0] // blocks.shards
    size = min(blocks.block, words)
    start = jnp.minimum(i * size, words - size)
    head_WnD = head_VD.reshape(blocks.shards, words, -1)
    head = jax.lax.dynamic_slice_in_dim(head_WnD, start, size, axis=1)
    head = blocks.constrain(head.astype(dtype), ('vocab', None, None))
    place = start + jnp.arange(size)
    first = words * jnp.arange(blocks.shards)
    return _Words(head, first[:, None] + place, place >= i * size, start)


def _num_blocks(head_VD: jax.Array, blocks: Blocks) -> int:
    return -(-(head_VD.shape[0] // blocks.shards) // blocks.block)


def _each_chunk(
    size: int,
    count: jax.Array,
    blocks: Blocks,
    body: Callable[[jax.Array, Any], Any],
    carry: Any,
) -> Any:
    """Carries a tree over the first positions of all chunks that are not padding.

    No loop where one chunk holds all positions: sums that a loop carries between devices
    would be completed in every round.
    """
    if size <= blocks.chunk:
        return body(jnp.int32(0), carry)
    chunks = (count + blocks.chunk - 1) // blocks.chunk
    return jax.lax.fori_loop(0, chunks, lambda j, c: body(j * blocks.chunk, c), carry)


def _slice(tree: Any, start: jax.Array, chunk: int) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1), tree
    )


def _write(tree: Any, updates: Any, start: jax.Array) -> Any:
    return jax.tree.map(
        lambda x, update: jax.lax.dynamic_update_slice_in_dim(
            x, update.astype(x.dtype), start, axis=1
        ),
        tree,
        updates,
    )


def _fold(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    count: jax.Array,
    blocks: Blocks,
    carry: Any,
    update: Callable[[Any, jax.Array, _Words, jax.Array], Any],
) -> Any:
    """Carries arrays [B, S] over all blocks of the vocabulary.

    Args:
      hidden_BSD: states.
      head_VD: output head.
      count: positions that are not padding.
      blocks: sizes.
      carry: tree of [B, S] at the start.
      update: (carry of a chunk, logits, words, first position) -> carry of the chunk.
    """

    def block(i: jax.Array, carry: Any) -> Any:
        words = _words(head_VD, hidden_BSD.dtype, i, blocks)

        def chunk(start: jax.Array, carry: Any) -> Any:
            logits = words.logits(_slice(hidden_BSD, start, blocks.chunk))
            part = _slice(carry, start, blocks.chunk)
            return _write(carry, update(part, logits, words, start), start)

        return _each_chunk(hidden_BSD.shape[1], count, blocks, chunk, carry)

    return jax.lax.fori_loop(0, _num_blocks(head_VD, blocks), block, carry)


def _add_logits(
    carry: tuple[jax.Array, jax.Array], logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Running maximum and sum of exp(logits - maximum)."""
    old, total = carry
    new = jnp.maximum(old, jnp.max(logits, axis=-1))
    added = jnp.sum(jnp.exp(logits - new[..., None]), axis=-1)
    return new, total * jnp.exp(old - new) + added


def _no_logits(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    # finite, so that old - new is no NaN where nothing was seen yet
    return jnp.full(shape, jnp.finfo(jnp.float32).min), jnp.zeros(shape, jnp.float32)


def _normaliser(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Log of the sum; 0 where nothing was added."""
    largest, total = carry
    seen = total > 0
    return jnp.where(seen, largest + jnp.log(jnp.where(seen, total, 1)), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_logps(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    blocks: Blocks,
) -> jax.Array:
    """Log-probability of each target token, with log-softmax in float32.

    Args:
      hidden_BSD: state that predicts each target; S is a multiple of the chunk.
      head_VD: output head.
      targets_BS: int32, target tokens.
      count: int32 []; positions from `count` on are padding in every row. Chunks of
        padding cost nothing.
      blocks: how much is computed at once.

    Returns:
      float32 [B, S]; 0 in chunks that hold only padding.
    """
    return _forward(hidden_BSD, head_VD, targets_BS, count, blocks)[0]


def _forward(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    blocks: Blocks,
) -> tuple[jax.Array, jax.Array]:
    """Log-probs and log normalisers, both float32 [B, S]."""

    def update(carry: Any, logits: jax.Array, words: _Words, start: jax.Array) -> Any:
        running, chosen = carry
        hits = words.hits(_slice(targets_BS, start, blocks.chunk))
        found = jnp.sum(jnp.where(hits, logits, 0.0), axis=-1)
        return _add_logits(running, logits), chosen + found

    shape = targets_BS.shape
    carry = (_no_logits(shape), jnp.zeros(shape, jnp.float32))
    running, chosen = _fold(hidden_BSD, head_VD, count, blocks, carry, update)
    normalisers = _normaliser(running)
    return chosen - normalisers, normalisers


def _vjp_forward(
    hidden_BSD: jax.Array,
    head_VD: jax.Array,
    targets_BS: jax.Array,
    count: jax.Array,
    blocks: Blocks,
) -> tuple[jax.Array, tuple]:
    logps, normalisers = _forward(hidden_BSD, head_VD, targets_BS, count, blocks)
    return logps, (hidden_BSD, head_VD, targets_BS, count, normalisers)


def _vjp_backward(blocks: Blocks, residuals: tuple, grad_BS: jax.Array) -> tuple:
    """Uses d log p / d logits = onehot(target) - softmax(logits)."""
    hidden_BSD, head_VD, targets_BS, count, normalisers_BS = residuals
    shards, width = blocks.shards, head_VD.shape[1]

    def block(i: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
        words = _words(head_VD, hidden_BSD.dtype, i, blocks)

        def chunk(start: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
            grad_hidden, grad_words = carry
            hidden, targets, normaliser, grad = _slice(
                (hidden_BSD, targets_BS, normalisers_BS, grad_BS), start, blocks.chunk
            )
            probs = jnp.exp(words.logits(hidden) - normaliser[..., None])
            grad_logits = (words.hits(targets) - probs) * grad[..., None]
            grad_logits = grad_logits.astype(hidden.dtype)
            grad_logits = grad_logits.reshape(*grad_logits.shape[:2], shards, -1)
            back = product(grad_logits, 'bcwi', words.head_WID, 'wid', 'bcd', jnp.float32)
            part = _slice(grad_hidden, start, blocks.chunk)
            grad_hidden = _write(grad_hidden, part + back, start)
            more = product(grad_logits, 'bcwi', hidden, 'bcd', 'wid', jnp.float32)
            return grad_hidden, grad_words + more

        grad_hidden, grad_head = carry
        nothing = jnp.zeros(words.head_WID.shape, jnp.float32)
        grad_hidden, found = _each_chunk(
            hidden_BSD.shape[1], count, blocks, chunk, (grad_hidden, nothing)
        )
        found = blocks.constrain(found, ('vocab', None, 'embed'))
        part = _slice(grad_head, words.start, words.head_WID.shape[1])
        return grad_hidden, _write(grad_head, part + found, words.start)

    zeros = (
        jnp.zeros(hidden_BSD.shape, jnp.float32),
        jnp.zeros((shards, head_VD.shape[0] // shards, width), jnp.float32),
    )
    grad_hidden, grad_head = jax.lax.fori_loop(
        0, _num_blocks(head_VD, blocks), block, zeros
    )
    grad_head = grad_head.reshape(head_VD.shape).astype(head_VD.dtype)
    return grad_hidden.astype(hidden_BSD.dtype), grad_head, None, None


token_logps.defvjp(_vjp_forward, _vjp_backward)


def token_collisions(
    hidden_BSD: jax.Array, head_VD: jax.Array, count: jax.Array, blocks: Blocks
) -> jax.Array:
    """Log sum_v p(v)^2 of each predicted distribution; no gradient is defined.

    Args:
      hidden_BSD: state that predicts; S is a multiple of the chunk.
      head_VD: output head.
      count: as in `token_logps`.
      blocks: likewise.

    Returns:
      float32 [B, S]; 0 in chunks that hold only padding.
    """

    def update(carry: Any, logits: jax.Array, words: _Words, start: jax.Array) -> Any:
        del words, start
        once, twice = carry
        return _add_logits(once, logits), _add_logits(twice, 2 * logits)

    shape = hidden_BSD.shape[:2]
    carry = (_no_logits(shape), _no_logits(shape))
    once, twice = _fold(hidden_BSD, head_VD, count, blocks, carry, update)
    return _normaliser(twice) - 2 * _normaliser(once)


def token_likeliest(
    hidden_BSD: jax.Array, head_VD: jax.Array, count: jax.Array, blocks: Blocks
) -> jax.Array:
    """The likeliest token of each predicted distribution, the first one of several.

    Args: as `token_collisions`.

    Returns:
      int32 [B, S]; 0 in chunks that hold only padding.
    """

    def update(carry: Any, logits: jax.Array, words: _Words, start: jax.Array) -> Any:
        del start
        best, token = carry
        largest = jnp.max(logits, axis=-1)
        ids = words.ids_WI.ravel()[jnp.argmax(logits, axis=-1)]
        better = (largest > best) | ((largest == best) & (ids < token))
        return jnp.where(better, largest, best), jnp.where(better, ids, token)

    shape = hidden_BSD.shape[:2]
    carry = (jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
    return _fold(hidden_BSD, head_VD, count, blocks, carry, update)[1]
