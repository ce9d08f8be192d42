"""Random models of transformers, and logits of both implementations."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec

SIZES = {
    'vocab_size': 96,
    'hidden_size': 32,
    'intermediate_size': 40,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'max_position_embeddings': 256,
}
# torch's initialisation is too timid for errors to show; see `random_model`
CONFIGS = {
    'llama': ('llama', {}),
    'llama, every head its own': ('llama', {'num_key_value_heads': 4}),
    'llama, one kv head, tied': (
        'llama',
        {'num_key_value_heads': 1, 'tie_word_embeddings': True},
    ),
    'llama, biases': ('llama', {'attention_bias': True, 'mlp_bias': True}),
    'llama, wide heads': ('llama', {'head_dim': 12, 'rms_norm_eps': 1e-3}),
    'llama, llama3 scaling': (
        'llama',
        {
            'rope_parameters': {
                'rope_type': 'llama3',
                'rope_theta': 500000.0,
                'factor': 8.0,
                'low_freq_factor': 1.0,
                'high_freq_factor': 4.0,
                'original_max_position_embeddings': 32,
            }
        },
    ),
    'mistral, window shorter than the sequence': ('mistral', {'sliding_window': 7}),
    'mistral, no window, odd width': (
        'mistral',
        {
            'sliding_window': None,
            'hidden_size': 28,
            'num_attention_heads': 6,
            'head_dim': 8,
        },
    ),
    'mistral, tied': (
        'mistral',
        {'sliding_window': 4096, 'tie_word_embeddings': True, 'head_dim': 16},
    ),
}


def random_model(kind: str, changes: dict, seed: int = 0) -> torch.nn.Module:
    """A float32 model whose every parameter matters, norms and biases included."""
    config_class, model_class = {
        'llama': (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        'mistral': (transformers.MistralConfig, transformers.MistralForCausalLM),
    }[kind]
    torch.manual_seed(seed)
    model = model_class(config_class(**(SIZES | changes))).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn_like(p)
            p.copy_(1 + 0.3 * noise if 'norm' in name else 0.2 * noise)
    return model


def tokens(vocab: int, length: int = 48, rows: int = 2, seed: int = 1) -> np.ndarray:
    """Random token ids [rows, length]."""
    return np.random.default_rng(seed).integers(0, vocab, (rows, length))


def their_logits(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of transformers."""
    with torch.no_grad():
        return model(torch.as_tensor(ids)).logits.numpy()


def our_logits(spec: ModelSpec, params: dict, ids: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of this package."""
    ones = jnp.ones(ids.shape, jnp.int32)
    hidden = transformer.hidden_states(
        params,
        jnp.asarray(ids, jnp.int32),
        jnp.arange(ids.shape[1]) * ones,
        ones,
        0 * ones,
        spec=spec,
        compute=transformer.Compute(),
    )
    return np.asarray(hidden @ transformer.head_weights(params).T)


def load(folder: str | Path) -> torch.nn.Module:
    """The model of a folder, as a user of transformers opens it."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
