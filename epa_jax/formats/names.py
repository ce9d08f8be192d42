"""How each format names and lays out the tensors of a model.

One closed table a format: `expected(spec)` lists every tensor that a file of this model
must hold, and where it goes in the parameter tree. Nothing else may be in the file but
what is ignored by name.
"""

import dataclasses
import enum
import math
import re

import numpy as np

from epa_jax.models import lora
from epa_jax.models.spec import ModelSpec


class FormatError(ValueError):
    """A file that cannot be loaded; the message names the file, the tensor, the remedy."""


class Layout(enum.Enum):
    """How a file stores a parameter."""

    SAME = 'same shape'
    FLAT = 'flattened'
    OUT_IN = 'matrix [outputs, inputs]'
    OUT_IN_PAIRED = 'matrix [outputs, inputs], rotary pairs adjacent'
    FLAT_PAIRED = 'flattened, rotary pairs adjacent'
    IN_OUT = 'matrix [inputs, outputs]'
    TRANSPOSED = 'transposed'


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a stored tensor goes.

    Attributes:
      path: keys of the parameter tree.
      layer: index in the stacked parameter, or None outside the layers.
      layout: how it is stored.
    """

    path: tuple[str, ...]
    layer: int | None
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of one format.

    Attributes:
      outside: leaf -> (name, layout), for leaves outside the layers.
      inside: leaf -> (name with {} for the layer, layout).
      ignored: matches names that may be there and are not read.
    """

    outside: dict[str, tuple[str, Layout]]
    inside: dict[str, tuple[str, Layout]]
    ignored: re.Pattern[str]

    def expected(self, spec: ModelSpec) -> dict[str, Slot]:
        """Every tensor of a model, in the order of the model; a tied head has none."""
        leaves = [leaf for leaf in self.inside if _has(spec, leaf)]
        slots = {}
        for leaf, (name, layout) in self.outside.items():
            if leaf == 'norm':  # after the layers
                for layer in range(spec.n_layers):
                    for inner in leaves:
                        template, inner_layout = self.inside[inner]
                        path = ('layers', inner)
                        slots[template.format(layer)] = Slot(path, layer, inner_layout)
            if leaf != 'head' or not spec.tie_embeddings:
                slots[name] = Slot((leaf,), None, layout)
        return slots


def _has(spec: ModelSpec, leaf: str) -> bool:
    if leaf in ('q_bias', 'k_bias', 'v_bias', 'o_bias'):
        return spec.attention_bias
    if leaf in ('gate_bias', 'up_bias', 'down_bias'):
        return spec.mlp_bias
    return True


def stored_shape(slot: Slot, leaf: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the file of a parameter of shape `leaf` (one layer's, if stacked)."""
    if slot.layout is Layout.SAME:
        return leaf
    if slot.layout in (Layout.FLAT, Layout.FLAT_PAIRED):
        return (math.prod(leaf),)
    if slot.layout is Layout.TRANSPOSED:
        return leaf[::-1]
    inputs, outputs = _matrix(slot, leaf)
    return (inputs, outputs) if slot.layout is Layout.IN_OUT else (outputs, inputs)


def _matrix(slot: Slot, leaf: tuple[int, ...]) -> tuple[int, int]:
    axes = lora.input_axes(slot.path[-1])
    return math.prod(leaf[:axes]), math.prod(leaf[axes:])


def to_leaf(stored: np.ndarray, slot: Slot, leaf: tuple[int, ...]) -> np.ndarray:
    """A stored tensor in the shape of the parameter tree; a view where possible."""
    if slot.layout in (Layout.OUT_IN_PAIRED, Layout.FLAT_PAIRED):
        stored = _unpair(stored, leaf[-1])
    if slot.layout in (Layout.OUT_IN, Layout.OUT_IN_PAIRED, Layout.TRANSPOSED):
        stored = stored.T
    return stored.reshape(leaf)


def _unpair(stored: np.ndarray, head_dim: int) -> np.ndarray:
    """From llama.cpp's rotary order (0, 1), (2, 3) .. to Hugging Face's halves."""
    heads = stored.shape[0] // head_dim
    pairs = stored.reshape(heads, head_dim // 2, 2, *stored.shape[1:])
    return pairs.swapaxes(1, 2).reshape(stored.shape)


def from_leaf(value: np.ndarray, slot: Slot) -> np.ndarray:
    """The inverse of `to_leaf`, for the layouts that are written.

    Raises:
      ValueError: a layout that is only read.
    """
    if slot.layout is Layout.SAME:
        return value
    if slot.layout is Layout.FLAT:
        return value.reshape(-1)
    if slot.layout is Layout.OUT_IN:
        return value.reshape(_matrix(slot, value.shape)).T
    raise ValueError(f'{slot.layout} is not written')


HUGGING_FACE = Names(
    outside={
        'embed': ('model.embed_tokens.weight', Layout.SAME),
        'norm': ('model.norm.weight', Layout.SAME),
        'head': ('lm_head.weight', Layout.SAME),
    },
    inside={
        'attn_norm': ('model.layers.{}.input_layernorm.weight', Layout.SAME),
        'q': ('model.layers.{}.self_attn.q_proj.weight', Layout.OUT_IN),
        'k': ('model.layers.{}.self_attn.k_proj.weight', Layout.OUT_IN),
        'v': ('model.layers.{}.self_attn.v_proj.weight', Layout.OUT_IN),
        'o': ('model.layers.{}.self_attn.o_proj.weight', Layout.OUT_IN),
        'q_bias': ('model.layers.{}.self_attn.q_proj.bias', Layout.FLAT),
        'k_bias': ('model.layers.{}.self_attn.k_proj.bias', Layout.FLAT),
        'v_bias': ('model.layers.{}.self_attn.v_proj.bias', Layout.FLAT),
        'o_bias': ('model.layers.{}.self_attn.o_proj.bias', Layout.FLAT),
        'mlp_norm': ('model.layers.{}.post_attention_layernorm.weight', Layout.SAME),
        'gate': ('model.layers.{}.mlp.gate_proj.weight', Layout.OUT_IN),
        'up': ('model.layers.{}.mlp.up_proj.weight', Layout.OUT_IN),
        'down': ('model.layers.{}.mlp.down_proj.weight', Layout.OUT_IN),
        'gate_bias': ('model.layers.{}.mlp.gate_proj.bias', Layout.FLAT),
        'up_bias': ('model.layers.{}.mlp.up_proj.bias', Layout.FLAT),
        'down_bias': ('model.layers.{}.mlp.down_proj.bias', Layout.FLAT),
    },
    # rotary frequencies, saved by transformers before 4.32; they follow from the config
    ignored=re.compile(r'model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq'),
)

# FlaxLlamaForCausalLM and FlaxMistralForCausalLM of transformers 4.x
FLAX = Names(
    outside={
        'embed': ('model/embed_tokens/embedding', Layout.SAME),
        'norm': ('model/norm/weight', Layout.SAME),
        'head': ('lm_head/kernel', Layout.TRANSPOSED),
    },
    inside={
        'attn_norm': ('model/layers/{}/input_layernorm/weight', Layout.SAME),
        'q': ('model/layers/{}/self_attn/q_proj/kernel', Layout.IN_OUT),
        'k': ('model/layers/{}/self_attn/k_proj/kernel', Layout.IN_OUT),
        'v': ('model/layers/{}/self_attn/v_proj/kernel', Layout.IN_OUT),
        'o': ('model/layers/{}/self_attn/o_proj/kernel', Layout.IN_OUT),
        'q_bias': ('model/layers/{}/self_attn/q_proj/bias', Layout.FLAT),
        'k_bias': ('model/layers/{}/self_attn/k_proj/bias', Layout.FLAT),
        'v_bias': ('model/layers/{}/self_attn/v_proj/bias', Layout.FLAT),
        'o_bias': ('model/layers/{}/self_attn/o_proj/bias', Layout.FLAT),
        'mlp_norm': ('model/layers/{}/post_attention_layernorm/weight', Layout.SAME),
        'gate': ('model/layers/{}/mlp/gate_proj/kernel', Layout.IN_OUT),
        'up': ('model/layers/{}/mlp/up_proj/kernel', Layout.IN_OUT),
        'down': ('model/layers/{}/mlp/down_proj/kernel', Layout.IN_OUT),
        'gate_bias': ('model/layers/{}/mlp/gate_proj/bias', Layout.FLAT),
        'up_bias': ('model/layers/{}/mlp/up_proj/bias', Layout.FLAT),
        'down_bias': ('model/layers/{}/mlp/down_proj/bias', Layout.FLAT),
    },
    ignored=re.compile(r'(?!)'),
)

# llama.cpp; it turns the rows of q and k so that rotary pairs are adjacent
GGUF = Names(
    outside={
        'embed': ('token_embd.weight', Layout.SAME),
        'norm': ('output_norm.weight', Layout.SAME),
        'head': ('output.weight', Layout.SAME),
    },
    inside={
        'attn_norm': ('blk.{}.attn_norm.weight', Layout.SAME),
        'q': ('blk.{}.attn_q.weight', Layout.OUT_IN_PAIRED),
        'k': ('blk.{}.attn_k.weight', Layout.OUT_IN_PAIRED),
        'v': ('blk.{}.attn_v.weight', Layout.OUT_IN),
        'o': ('blk.{}.attn_output.weight', Layout.OUT_IN),
        'q_bias': ('blk.{}.attn_q.bias', Layout.FLAT_PAIRED),
        'k_bias': ('blk.{}.attn_k.bias', Layout.FLAT_PAIRED),
        'v_bias': ('blk.{}.attn_v.bias', Layout.FLAT),
        'o_bias': ('blk.{}.attn_output.bias', Layout.FLAT),
        'mlp_norm': ('blk.{}.ffn_norm.weight', Layout.SAME),
        'gate': ('blk.{}.ffn_gate.weight', Layout.OUT_IN),
        'up': ('blk.{}.ffn_up.weight', Layout.OUT_IN),
        'down': ('blk.{}.ffn_down.weight', Layout.OUT_IN),
        'gate_bias': ('blk.{}.ffn_gate.bias', Layout.FLAT),
        'up_bias': ('blk.{}.ffn_up.bias', Layout.FLAT),
        'down_bias': ('blk.{}.ffn_down.bias', Layout.FLAT),
    },
    # rotary scaling, which `gguf_file` has turned into the spec's RopeScaling
    ignored=re.compile(r'rope_freqs\.weight'),
)
