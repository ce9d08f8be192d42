"""The decoder of LLaMA and Mistral, as a pure function of its parameters.

Parameters are a nested dict of arrays; those of the layers are stacked in front
(L layers) and scanned. N query heads, M key and value heads of width H, F the width of
the MLP; other letters as in `epa_jax.types`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.models import attention, rope
from epa_jax.models.attention import Attend
from epa_jax.models.contract import contract
from epa_jax.models.mask import Tokens
from epa_jax.models.remat import rematerialised
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

INIT_STDDEV = 0.02  # Hugging Face's initializer_range


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the forward pass computes; none of it changes the mathematics.

    Attributes:
      dtype: of matrix products and the residual stream.
      remat: what the backward pass keeps of each layer: 'none', 'dots' or 'full'
        (see `schema.ModelConfig.remat`).
      attention: back end, see `attention.attend`.
      logprob_chunk: tokens per row that meet the vocabulary at once; 0 is all.
      vocab_block: words of each shard of the vocabulary that they meet at once.
      mesh: the devices; None is the default device.
      platform: of the device that runs it where there is no mesh; '' is the default.
      interpret: run kernels for TPUs in Pallas's interpreter, on any machine and slowly.
    """

    dtype: str = 'float32'
    remat: str = 'none'
    attention: str = 'auto'
    logprob_chunk: int = 128
    vocab_block: int = 4096
    mesh: Mesh | None = None
    platform: str = ''
    interpret: bool = False

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Places an activation on the mesh by logical axis names."""
        return x if self.mesh is None else sharding.constrain(x, axes, self.mesh)

    def attend(self, tokens: Tokens, sliding_window: int | None) -> Attend:
        """Attention of every layer over these tokens."""
        return attention.prepare(
            tokens,
            self.dtype,
            sliding_window=sliding_window,
            backend=self.attention,
            mesh=self.mesh,
            platform=self.platform,
            interpret=self.interpret,
        )


def _weight(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    stddev: float = INIT_STDDEV,
) -> nnx.Param:
    value = stddev * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value, axes=axes)


def _bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes)


def _scale(width: int) -> nnx.Param:
    return nnx.Param(jnp.ones((width,), jnp.float32), axes=('norm',))


def rms_norm(x_BTD: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation in float32; the dtype of x is kept."""
    x = x_BTD.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x.astype(x_BTD.dtype) * scale_D.astype(x_BTD.dtype)


def low_rank(equation: str) -> tuple[str, str]:
    """The einsum of a matrix as two, through r dimensions: 'btd,df->btf' by d,r and r,f."""
    inputs, _, outputs = equation.partition('->')
    x, matrix = inputs.split(',')
    summed = ''.join(axis for axis in matrix if axis in x)
    kept = ''.join(axis for axis in matrix if axis not in x)
    return f'{x},{summed}r->btr', f'btr,r{kept}->{outputs}'


class Layer(nnx.Module):
    """One decoder layer: attention, then a gated MLP, each after a norm."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs, adapted: tuple[str, ...] = ()):
        d, f, h = spec.d_model, spec.d_ff, spec.head_dim
        n, m = spec.n_heads, spec.n_kv_heads
        out = INIT_STDDEV / (2 * spec.n_layers) ** 0.5
        self.attn_norm = _scale(d)
        self.q = _weight(rngs, (d, n, h), ('embed', 'heads', 'head_dim'))
        self.k = _weight(rngs, (d, m, h), ('embed', 'kv_heads', 'head_dim'))
        self.v = _weight(rngs, (d, m, h), ('embed', 'kv_heads', 'head_dim'))
        self.o = _weight(rngs, (n, h, d), ('heads', 'head_dim', 'embed'), out)
        if spec.attention_bias:
            self.q_bias = _bias((n, h), ('heads', 'head_dim'))
            self.k_bias = _bias((m, h), ('kv_heads', 'head_dim'))
            self.v_bias = _bias((m, h), ('kv_heads', 'head_dim'))
            self.o_bias = _bias((d,), ('norm',))
        self.mlp_norm = _scale(d)
        self.gate = _weight(rngs, (d, f), ('embed', 'mlp'))
        self.up = _weight(rngs, (d, f), ('embed', 'mlp'))
        self.down = _weight(rngs, (f, d), ('mlp', 'embed'), out)
        if spec.mlp_bias:
            self.gate_bias = _bias((f,), ('mlp',))
            self.up_bias = _bias((f,), ('mlp',))
            self.down_bias = _bias((d,), ('norm',))
        for name in adapted:  # the shapes and values of adapters are `models.lora`'s
            setattr(self, f'{name}_lora_a', _bias((), ()))
            setattr(self, f'{name}_lora_b', _bias((), ()))

    def project(self, x: jax.Array, name: str, equation: str) -> jax.Array:
        """Applies a matrix, its adapter if it has one, and its bias likewise."""
        y = contract(equation, x, getattr(self, name)[...].astype(x.dtype))
        down = getattr(self, f'{name}_lora_a', None)
        if down is not None:
            first, second = low_rank(equation)
            up = getattr(self, f'{name}_lora_b')[...].astype(x.dtype)
            y += contract(second, contract(first, x, down[...].astype(x.dtype)), up)
        bias = getattr(self, f'{name}_bias', None)
        return y if bias is None else y + bias[...].astype(x.dtype)

    def __call__(
        self,
        x_BTD: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        attend: Attend,
        spec: ModelSpec,
        compute: Compute,
    ) -> jax.Array:
        y = rms_norm(x_BTD, self.attn_norm[...], spec.norm_eps)
        q = rope.rotate(self.project(y, 'q', 'btd,dnh->btnh'), *cos_sin)
        k = rope.rotate(self.project(y, 'k', 'btd,dmh->btmh'), *cos_sin)
        v = self.project(y, 'v', 'btd,dmh->btmh')
        y = attend(q, k, v)
        x = x_BTD + self.project(y, 'o', 'btnh,nhd->btd')
        y = rms_norm(x, self.mlp_norm[...], spec.norm_eps)
        gate = jax.nn.silu(self.project(y, 'gate', 'btd,df->btf'))
        x += self.project(
            gate * self.project(y, 'up', 'btd,df->btf'), 'down', 'btf,fd->btd'
        )
        return compute.constrain(x, ('batch', None, None))


class Decoder(nnx.Module):
    """Embedding, stacked layers, final norm, and a head unless it is tied."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs, adapted: tuple[str, ...] = ()):
        axes = ('vocab', 'embed')
        self.embed = _weight(rngs, (spec.vocab_size, spec.d_model), axes)
        stack = nnx.vmap(lambda r: Layer(spec, r, adapted), in_axes=0, out_axes=0)
        self.layers = stack(rngs.split(spec.n_layers))
        self.norm = _scale(spec.d_model)
        if not spec.tie_embeddings:
            self.head = _weight(rngs, (spec.vocab_size, spec.d_model), axes)

    def __call__(
        self,
        tokens_BT: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        attend: Attend,
        spec: ModelSpec,
        compute: Compute,
    ) -> jax.Array:
        x = self.embed[...][tokens_BT].astype(compute.dtype)
        x = compute.constrain(x, ('batch', None, None))
        graph, stacked = nnx.split(self.layers)

        def body(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            layer = nnx.merge(graph, weights)
            return layer(x, cos_sin, attend, spec, compute), None

        x, _ = jax.lax.scan(rematerialised(body, compute.remat), x, stacked)
        return rms_norm(x, self.norm[...], spec.norm_eps)


@functools.cache
def _structure(spec: ModelSpec, adapted: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """Graph and abstract state of the decoder, with adapters of the matrices named."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(spec, nnx.Rngs(0), adapted)))


def abstract_params(spec: ModelSpec, dtype: Any) -> Params:
    """Shapes of the parameters as a nested dict of `jax.ShapeDtypeStruct`."""
    pure = nnx.to_pure_dict(_structure(spec)[1])
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, dtype), pure)


def logical_axes(spec: ModelSpec) -> Params:
    """Logical axis names of every parameter, in the structure of the parameters."""

    def axes(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        own = variable.get_metadata('axes')
        stacked = path[0].key == 'layers'
        return variable.replace(('layers', *own) if stacked else own)

    state = jax.tree_util.tree_map_with_path(
        axes, _structure(spec)[1], is_leaf=lambda v: isinstance(v, nnx.Variable)
    )
    return nnx.to_pure_dict(state)


def init_params(spec: ModelSpec, key: jax.Array, dtype: Any = jnp.float32) -> Params:
    """Random parameters: normal weights, unit norms, zero biases."""
    _, state = nnx.split(Decoder(spec, nnx.Rngs(params=key)))
    return jax.tree.map(lambda p: p.astype(dtype), nnx.to_pure_dict(state))


def num_params(spec: ModelSpec) -> int:
    """Parameters in all."""
    return sum(p.size for p in jax.tree.leaves(abstract_params(spec, jnp.float32)))


def decoder(params: Params, spec: ModelSpec) -> Decoder:
    """The module with these parameters, adapters included."""
    first = '_lora_a'
    names = sorted(n.removesuffix(first) for n in params['layers'] if n.endswith(first))
    return nnx.merge(_structure(spec, tuple(names))[0], params)


def hidden_states(
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    branches_BT: jax.Array | None,
    *,
    spec: ModelSpec,
    compute: Compute,
) -> jax.Array:
    """The decoder's output after the final norm, before the vocabulary.

    Args:
      params: as `abstract_params` describes them, or with adapters (`lora.attach`).
      tokens_BT: int32 [B, T].
      positions_BT: int32 [B, T], see `types.PackedBatch` for these three.
      segments_BT: int32 [B, T].
      branches_BT: int32 [B, T]; None where no prompt has two responses in a row.
      spec: architecture.
      compute: dtype, rematerialisation, back end.

    Returns:
      [B, T, D] in the compute dtype.
    """
    tokens = Tokens(positions_BT, segments_BT, branches_BT)
    attend = compute.attend(tokens, spec.sliding_window)
    angles = rope.cos_sin(positions_BT, spec)
    return decoder(params, spec)(tokens_BT, angles, attend, spec, compute)


def head_weights(params: Params) -> jax.Array:
    """The output head [V, D]: its own matrix, or the embedding when tied."""
    return params['head'] if 'head' in params else params['embed']
