"""Writes small models in every format, independently of the package under test.

The names and layouts are spelled out here a second time, after transformers' modelling
files and llama.cpp's conversion script.
"""

import json
from pathlib import Path

import flax.serialization
import flax.traverse_util
import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import abstract_params

CONFIG = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': 48,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 8,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'rope_theta': 10000.0,
    'max_position_embeddings': 128,
    'tie_word_embeddings': False,
    'attention_bias': True,
    'mlp_bias': True,
}


def random_params(spec: ModelSpec, seed: int = 0) -> dict:
    """Numbers that bfloat16 and float16 hold exactly, all of them different."""
    rng = np.random.default_rng(seed)

    def draw(p: jax.ShapeDtypeStruct) -> np.ndarray:
        return (rng.integers(-128, 128, p.shape) / 64).astype(np.float32)

    return jax.tree.map(draw, abstract_params(spec, 'float32'))


def hf_tensors(params: dict) -> dict[str, np.ndarray]:
    """Transformers' state dict; matrices are [outputs, inputs]."""
    d = params['embed'].shape[1]
    out = {
        'model.embed_tokens.weight': params['embed'],
        'model.norm.weight': params['norm'],
    }
    if 'head' in params:
        out['lm_head.weight'] = params['head']
    layers = params['layers']
    for i in range(len(layers['q'])):
        p = f'model.layers.{i}.'
        a, m = p + 'self_attn.', p + 'mlp.'
        out[p + 'input_layernorm.weight'] = layers['attn_norm'][i]
        out[p + 'post_attention_layernorm.weight'] = layers['mlp_norm'][i]
        for name in 'qkv':
            out[f'{a}{name}_proj.weight'] = layers[name][i].reshape(d, -1).T
        out[a + 'o_proj.weight'] = layers['o'][i].reshape(-1, d).T
        for name in ('gate', 'up', 'down'):
            out[f'{m}{name}_proj.weight'] = layers[name][i].T
        for name in ('q', 'k', 'v', 'o'):
            if f'{name}_bias' in layers:
                out[f'{a}{name}_proj.bias'] = layers[f'{name}_bias'][i].reshape(-1)
        for name in ('gate', 'up', 'down'):
            if f'{name}_bias' in layers:
                out[f'{m}{name}_proj.bias'] = layers[f'{name}_bias'][i]
    return {name: np.ascontiguousarray(value) for name, value in out.items()}


def write_safetensors(
    folder: Path, config: dict, params: dict, dtype: str = 'float32', shards: int = 1
) -> Path:
    """A folder as save_pretrained makes it."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    tensors = {n: v.astype(jnp.dtype(dtype)) for n, v in hf_tensors(params).items()}
    if shards == 1:
        save_file(tensors, folder / 'model.safetensors', {'format': 'pt'})
        return folder
    weight_map = {}
    for i in range(shards):
        file = f'model-{i + 1:05}-of-{shards:05}.safetensors'
        part = {name: tensors[name] for name in sorted(tensors)[i::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {'metadata': {}, 'weight_map': weight_map}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    return folder


def flax_tree(params: dict, dtype: str = 'float32') -> dict:
    """Nested parameters of FlaxLlamaForCausalLM; kernels are [inputs, outputs]."""
    flat = {}
    for name, value in hf_tensors(params).items():
        value = value.astype(jnp.dtype(dtype))
        if name == 'model.embed_tokens.weight':
            name = 'model.embed_tokens.embedding'
        elif name.endswith('.weight') and 'norm' not in name:
            name, value = name.removesuffix('weight') + 'kernel', value.T
        flat[tuple(name.split('.'))] = np.ascontiguousarray(value)
    return flax.traverse_util.unflatten_dict(flat)


def write_flax(folder: Path, config: dict, params: dict, dtype: str = 'float32') -> Path:
    """A folder as FlaxLlamaForCausalLM.save_pretrained makes it."""
    folder.mkdir(exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config))
    data = flax.serialization.msgpack_serialize(flax_tree(params, dtype))
    (folder / 'flax_model.msgpack').write_bytes(data)
    return folder


GGUF_NAMES = {
    'model.embed_tokens': 'token_embd',
    'model.norm': 'output_norm',
    'lm_head': 'output',
    'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: rotary pairs are adjacent."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def gguf_tensors(params: dict) -> dict[str, np.ndarray]:
    """Tensors as llama.cpp's conversion writes them."""
    layers = params['layers']
    out = {}
    for name, value in hf_tensors(params).items():
        module, _, kind = name.rpartition('.')
        if '.q_proj' in name:
            value = permute(value, layers['q'].shape[2])
        if '.k_proj' in name:
            value = permute(value, layers['k'].shape[2])
        block = ''
        if module.startswith('model.layers.'):
            _, _, layer, module = module.split('.', 3)
            block = f'blk.{layer}.'
        out[f'{block}{GGUF_NAMES[module]}.{kind}'] = np.ascontiguousarray(value)
    return out


def gguf_metadata(spec: ModelSpec) -> dict:
    """llama.* keys, with the value types that llama.cpp writes."""
    return {
        'llama.vocab_size': spec.vocab_size,
        'llama.context_length': spec.max_positions,
        'llama.embedding_length': spec.d_model,
        'llama.block_count': spec.n_layers,
        'llama.feed_forward_length': spec.d_ff,
        'llama.attention.head_count': spec.n_heads,
        'llama.attention.head_count_kv': spec.n_kv_heads,
        'llama.attention.key_length': spec.head_dim,
        'llama.attention.value_length': spec.head_dim,
        'llama.rope.dimension_count': spec.head_dim,
        'llama.rope.freq_base': float(spec.rope_theta),
        'llama.attention.layer_norm_rms_epsilon': spec.norm_eps,
    }


def write_gguf(
    path: Path,
    metadata: dict,
    tensors: dict[str, np.ndarray],
    kinds: dict[str, gguf.GGMLQuantizationType] | None = None,
    architecture: str = 'llama',
) -> Path:
    """A GGUF file, by the gguf package's writer."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }[type(value)]
        add(key, value)
    for name, value in tensors.items():
        kind = (kinds or {}).get(name)
        data = value if kind is None else gguf.quants.quantize(value, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
