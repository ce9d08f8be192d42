"""Low-rank adapters (LoRA) of the decoder's matrices, as a pytree beside its parameters.

An adapter of a matrix W with inputs i and outputs o is a pair A [i, r], B [r, o]; the
adapted model computes x W + scale (x A) B. B starts at zero, so the adapted model starts
as its base, and a reference that is the base needs no second copy of it.

Reference: Hu et al., 2021, arXiv:2106.09685; the scale alpha / sqrt(r) is that of
Kalajdzievski, 2023, arXiv:2312.03732.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

MATRICES = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
DOWN, UP = '_lora_a', '_lora_b'  # after the name of a matrix


@dataclasses.dataclass(frozen=True)
class Lora:
    """Which matrices are adapted, and how.

    Attributes:
      rank: r, inner dimension.
      alpha: numerator of the scale.
      matrices: of `MATRICES`.
      rank_stabilized: the scale is alpha / sqrt(r) and not alpha / r.
    """

    rank: int
    alpha: float
    matrices: tuple[str, ...] = MATRICES
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """Factor of the product of an adapter's matrices."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


def abstract_adapters(spec: ModelSpec, lora: Lora, dtype: str = 'float32') -> Params:
    """Shapes of adapters: {'layers': {'q_lora_a': [L, D, r], 'q_lora_b': [L, r, N, H]}}."""
    shapes = transformer.abstract_params(spec, dtype)['layers']
    out = {}
    for name in lora.matrices:
        inputs, outputs = _split(name, shapes[name].shape)
        layers = shapes[name].shape[:1]
        for end, shape in ((DOWN, (*inputs, lora.rank)), (UP, (lora.rank, *outputs))):
            out[name + end] = jax.ShapeDtypeStruct(layers + shape, dtype)
    return {'layers': out}


def logical_axes(spec: ModelSpec, lora: Lora) -> Params:
    """Logical axis names in the structure of `abstract_adapters`; the rank is not split."""
    axes = transformer.logical_axes(spec)['layers']
    out = {}
    for name in lora.matrices:
        inputs, outputs = _split(name, axes[name])
        out[name + DOWN] = ('layers', *inputs, 'rank')
        out[name + UP] = ('layers', 'rank', *outputs)
    return {'layers': out}


def _split(name: str, stacked: tuple) -> tuple[tuple, tuple]:
    """Inputs and outputs of a stacked matrix's axes."""
    border = 1 + input_axes(name)
    return stacked[1:border], stacked[border:]


def input_axes(leaf: str) -> int:
    """How many axes of one layer's matrix, or of an adapter's, are inputs."""
    return 2 if leaf in ('o', 'o' + DOWN) else 1  # heads and their width


def init_adapters(spec: ModelSpec, lora: Lora, key: jax.Array) -> Params:
    """Adapters that change nothing yet: A uniform in ±1/sqrt(inputs), B zero (as PEFT)."""
    shapes = abstract_adapters(spec, lora)['layers']
    out = {}
    keys = jax.random.split(key, len(shapes))
    for name, own in zip(sorted(shapes), keys, strict=True):
        shape = shapes[name].shape
        bound = math.prod(shape[1:-1]) ** -0.5
        if name.endswith(UP):
            out[name] = jnp.zeros(shape)
        else:
            out[name] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
    return {'layers': out}


def attach(params: Params, adapters: Params, scale: float) -> Params:
    """Parameters of the adapted model, for the functions of `transformer` and `decode`.

    The base's arrays are not copied. Differentiable by `adapters`; where nothing is
    differentiated by `params`, no gradient of their size is made.
    """
    scaled = {
        name: leaf * scale if name.endswith(UP) else leaf
        for name, leaf in adapters['layers'].items()
    }
    return params | {'layers': params['layers'] | scaled}


def merge(params: Params, donate: bool = False) -> Params:
    """Attached parameters as those of a model without adapters: W + scale A B.

    Sums are float32 and rounded once to the dtype of W, which also says where they live.
    Parameters without adapters come back as they are.

    Args:
      params: from `attach`; arrays, not traced.
      donate: the adapted matrices are not needed any more.
    """
    layers = params['layers']
    out = {name: leaf for name, leaf in layers.items() if not name.endswith((DOWN, UP))}
    for name in MATRICES:
        if name + DOWN in layers:
            add = _adder(out[name].sharding, donate)
            out[name] = add(out[name], layers[name + DOWN], layers[name + UP])
    return params | {'layers': out}


@functools.cache
def _adder(where: Sharding, donate: bool) -> Callable[..., jax.Array]:
    return jax.jit(_add, out_shardings=where, donate_argnums=0 if donate else ())


def _add(matrix: jax.Array, down: jax.Array, up: jax.Array) -> jax.Array:
    """One stacked matrix plus the products of its adapters."""
    layers, rank = down.shape[0], down.shape[-1]
    product = jnp.einsum(
        'lir,lro->lio',
        down.reshape(layers, -1, rank).astype(jnp.float32),
        up.reshape(layers, rank, -1).astype(jnp.float32),
        precision='highest',
    )
    total = matrix.astype(jnp.float32) + product.reshape(matrix.shape)
    return total.astype(matrix.dtype)
