"""What the kernels of flash attention share: tiles, where they lie, and their scores.

A kernel sees one block of queries and one of keys at a time. Scores are kept with keys
down and queries across, so what a softmax keeps of each query is one row, and a TPU
reduces over keys without moving data between its lanes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from epa_jax.models.block_map import Lists, Steps
from epa_jax.models.mask import Tokens, sees

Ref = Any  # of a kernel to a tile, a list of the steps or scratch; Pallas names no type
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: no NaN where nothing is seen
NT = (((1,), (1,)), ((), ()))  # the second matrix transposed
TN = (((0,), (0,)), ((), ()))  # the first one transposed
PREFETCHED = len(Lists._fields)  # what index maps and kernels read of the steps
SUBLANES = 8  # rows of the smallest tile of a TPU


def stack_tokens(tokens: Tokens) -> jax.Array:
    """Tokens as one int32 array [B, 8, T]: what a kernel loads as a tile."""
    branches = jnp.zeros_like(tokens.segments)
    if tokens.branches is not None:
        branches = tokens.branches
    stacked = jnp.stack([tokens.positions, tokens.segments, branches], axis=1)
    stacked = stacked.astype(jnp.int32)
    return jnp.pad(stacked, ((0, 0), (0, SUBLANES - stacked.shape[1]), (0, 0)))


def scores(
    query: jax.Array,
    key: jax.Array,
    tokens: tuple[Ref, Ref],
    blocks: tuple[jax.Array, jax.Array],
    sliding_window: int | None,
) -> jax.Array:
    """Scores of a tile, float32 [keys, queries], MASKED where a query does not see a key.

    Args:
      query: [queries, H], scaled.
      key: [keys, H].
      tokens: references to tiles of `stack_tokens`: of the queries, of the keys.
      blocks: int32 [], which block each of the two is.
      sliding_window: as in `mask.sees`.
    """
    found = jax.lax.dot_general(key, query, NT, preferred_element_type=jnp.float32)
    keys, queries = found.shape
    across = tokens[0][...]
    down = tokens[1][...].T
    index_Q = jax.lax.broadcasted_iota(jnp.int32, (1, queries), 1) + blocks[0] * queries
    index_K = jax.lax.broadcasted_iota(jnp.int32, (keys, 1), 0) + blocks[1] * keys
    mask = sees(
        index_Q,
        Tokens(across[0:1], across[1:2], across[2:3]),
        index_K,
        Tokens(down[:, 0:1], down[:, 1:2], down[:, 2:3]),
        sliding_window,
    )
    return jnp.where(mask, found, MASKED)


def head_tile(block: int, width: int, head: Callable, at: str) -> pl.BlockSpec:
    """A block of one head of [B, heads, T, H], which a kernel sees as [block, H].

    Args:
      block: tokens of it.
      width: H.
      head: from the other indices of the grid to the head.
      at: the list of the steps that says which block: 'query' or 'key'.
    """

    def where(i: Any, step: Any, *rest: Any) -> tuple:
        more, steps = _split(rest)
        return steps.row[step], head(i, *more), getattr(steps, at)[step], 0

    return pl.BlockSpec((None, None, block, width), where)


def row_tile(block: int, head: Callable) -> pl.BlockSpec:
    """A block of queries of [B, heads, 1, T], which a kernel sees as [1, block]."""

    def where(i: Any, step: Any, *rest: Any) -> tuple:
        more, steps = _split(rest)
        return steps.row[step], head(i, *more), 0, steps.query[step]

    return pl.BlockSpec((None, None, 1, block), where)


def token_tile(block: int, at: str) -> pl.BlockSpec:
    """A block of `stack_tokens`, which a kernel sees as [8, block]."""

    def where(i: Any, step: Any, *rest: Any) -> tuple:
        steps = _split(rest)[1]
        return steps.row[step], 0, getattr(steps, at)[step]

    return pl.BlockSpec((None, SUBLANES, block), where)


def _split(rest: tuple) -> tuple[tuple, Lists]:
    return rest[:-PREFETCHED], Lists(*rest[-PREFETCHED:])


def call(
    kernel: Callable,
    grid: tuple,
    steps: Steps,
    inputs: list[tuple[jax.Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: list[tuple[int, int]],
    *,
    name: str,
    interpret: bool,
) -> list[jax.Array]:
    """Runs a kernel over a grid whose first axis is of heads, its second of the steps.

    The second axis is as long as the steps are many, which is known on the device only.

    Args:
      kernel: takes references to the lists of the steps, inputs, outputs and scratch.
      grid: its axes.
      steps: blocks to visit.
      inputs: arrays, and their tiles.
      outputs: shapes, and their tiles.
      scratch: shapes of float32 arrays that stay from step to step.
      name: of the kernel in profiles.
      interpret: run it on any platform, slowly.
    """
    order = (pltpu.PARALLEL, *(pltpu.ARBITRARY,) * (len(grid) - 1))
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=PREFETCHED,
            grid=grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=order),
        name=name,
        interpret=interpret,
    )(*steps.lists, *(array for array, _ in inputs))
