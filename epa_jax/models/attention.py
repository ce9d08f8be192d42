"""Attention over packed rows: one mask rule (`mask`), the back end that suits the machine.

| back end | runs on | dense mask [B, T, T] | |
|---|---|---|---|
| xla | all | yes | blocks of queries against the keys before them |
| spans | all | yes | blocks of queries against the keys that they see; for CPUs |
| pallas | TPU | no | `flash`: skips blocks that no token of a block may see |
| splash | TPU | no | `splash`: one response a prompt only |
| cudnn | CUDA GPU | yes | 16-bit floats, heads up to 128 wide; skips what comes later |

'auto' is spans on a CPU, pallas on a TPU, and on a GPU cudnn in 16-bit floats, else xla.
What the machine cannot run falls back, and says so once.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.models import flash, query_blocks, spans, splash
from epa_jax.models.mask import Tokens, visible

log = logging.getLogger(__name__)

# queries [B, T, N, H], keys and values [B, T, M, H] -> [B, T, N, H]
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
BACKENDS = ('auto', 'xla', 'spans', 'pallas', 'splash', 'cudnn')
CUDNN_WIDEST = 128  # heads of one kernel for all GPUs


def attend(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    tokens: Tokens,
    *,
    sliding_window: int | None = None,
    backend: str = 'auto',
    mesh: Mesh | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention with grouped key and value heads; softmax in float32.

    Args:
      q_BTNH: queries, N heads.
      k_BTMH: keys, M heads, M divides N.
      v_BTMH: values.
      tokens: what the mask depends on, see `mask.sees`.
      sliding_window: positions seen, the token itself included; None sees all.
      backend: one of `BACKENDS`.
      mesh: the devices; None is the default device.
      interpret: run kernels for TPUs in Pallas's interpreter, which checks them on any
        machine and is slow.

    Returns:
      [B, T, N, H] in the dtype of the queries. Padding gets something finite.

    Raises:
      ValueError: an unknown back end.
    """
    return prepare(
        tokens,
        q_BTNH.dtype,
        sliding_window=sliding_window,
        backend=backend,
        mesh=mesh,
        interpret=interpret,
    )(q_BTNH, k_BTMH, v_BTMH)


def prepare(
    tokens: Tokens,
    dtype: Any,
    *,
    sliding_window: int | None,
    backend: str,
    mesh: Mesh | None = None,
    platform: str = '',
    interpret: bool = False,
) -> Attend:
    """`attend` for many layers: what depends on the tokens alone is computed once.

    Args:
      tokens: as in `attend`, and the others likewise.
      dtype: of queries, keys and values.
      sliding_window: positions seen.
      backend: one of `BACKENDS`.
      mesh: the devices.
      platform: of the device where there is no mesh; '' is the default.
      interpret: run kernels for TPUs on any machine.

    Raises:
      ValueError: an unknown back end.
    """
    where = 'tpu' if interpret else platform or _platform(mesh)
    chosen = choose(backend, where, dtype, shared=tokens.branches is not None)
    if chosen in ('xla', 'cudnn'):
        dense = query_blocks.causal if chosen == 'xla' else _cudnn
        return functools.partial(dense, mask_BTT=visible(tokens, sliding_window))
    rows = sharding.partition(('batch',))
    heads, shared = (
        sharding.partition(('batch', None, axis, None)) for axis in ('heads', 'kv_heads')
    )
    operands = (heads, shared, shared, rows)
    if chosen == 'spans':  # devices differ in what their rows need
        real = tokens.segments > 0
        seen = spans.plan(visible(tokens, sliding_window) & real[:, :, None])
        on_shards = _on_shards(spans.attend, mesh, operands, heads)
        return lambda q, k, v: on_shards(q, k, v, seen)
    kernel: Callable = flash.attend if chosen == 'pallas' else splash.attend
    block = flash.block_size(tokens.segments.shape[1])
    known: Any = tokens
    if chosen == 'pallas':
        plan = functools.partial(
            flash.plan_blocks, sliding_window=sliding_window, block=block
        )
        known = _on_shards(plan, mesh, (rows,), rows)(tokens)
    kernel = functools.partial(
        kernel, block=block, sliding_window=sliding_window, interpret=interpret
    )
    on_shards = _on_shards(kernel, mesh, operands, heads)
    return lambda q, k, v: on_shards(q, k, v, known)


def choose(backend: str, platform: str, dtype: Any, *, shared: bool) -> str:
    """The back end that runs, not 'auto'.

    A line is logged, once, where that is not the one asked for.

    Args:
      backend: one of `BACKENDS`.
      platform: 'cpu', 'gpu' or 'tpu'.
      dtype: of queries, keys and values.
      shared: whether prompts may have several responses in a row.

    Raises:
      ValueError: an unknown back end.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f'attention back end {backend!r}: expected one of {", ".join(BACKENDS)}'
        )
    short = jnp.dtype(dtype).itemsize == 2
    if backend == 'auto':
        fast = {'cpu': 'spans', 'tpu': 'pallas', 'gpu': 'cudnn' if short else 'xla'}
        return fast.get(platform, 'xla')
    if backend in ('pallas', 'splash') and platform != 'tpu':
        return _fall_back(backend, 'xla', f'it is a kernel for TPUs, this is a {platform}')
    if backend == 'cudnn' and platform != 'gpu':
        return _fall_back(backend, 'xla', f'it is for CUDA GPUs, this is a {platform}')
    if backend == 'cudnn' and not short:
        reason = f'it computes in 16-bit floats, not {jnp.dtype(dtype)}'
        return _fall_back(backend, 'xla', f'{reason} (model.compute_dtype)')
    if backend == 'splash' and shared:
        reason = 'its mask cannot say that responses share a prompt'
        return _fall_back(backend, 'pallas', reason)
    return backend


@functools.cache  # says it once
def _fall_back(backend: str, to: str, reason: str) -> str:
    log.warning('model.attention=%s: falling back to %s; %s', backend, to, reason)
    return to


def _platform(mesh: Mesh | None) -> str:
    """Of the devices that will run it, which need not be those of this machine."""
    return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def _on_shards(
    function: Callable, mesh: Mesh | None, inputs: Any, outputs: Any
) -> Callable:
    """A kernel is opaque to the partitioner: each device runs it on its rows and heads."""
    if mesh is None:
        return function
    # kernels do not say over which axes their outputs vary
    return jax.shard_map(
        function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False
    )


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """CuDNN's flash attention: skips what comes later, and the mask hides the rest."""
    length, width = q.shape[1], q.shape[3]
    if length % 2 or width % 8 or width > CUDNN_WIDEST:
        reason = f'it does not know rows of {length} tokens and heads {width} wide'
        _fall_back('cudnn', 'xla', reason)
        return query_blocks.causal(q, k, v, mask_BTT)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask_BTT[:, None], is_causal=True, implementation='cudnn'
    )
