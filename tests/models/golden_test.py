"""Logits of small models, against numbers computed once by transformers.

transformers 5.23 on PyTorch 2.13 computed GOLDEN in float64, from these configurations
and weights, by `python -m tests.parity.make_golden`; no PyTorch is needed here.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from epa_jax.formats.load import load_model
from epa_jax.models import transformer

TOKENS = [3, 17, 41, 0, 22, 22, 9, 36, 5, 28, 13, 40, 1, 33, 19, 8, 30, 2, 25, 11]
PLACES = [0, 6, 19]  # positions compared
SHOWN = [0, 1, 13, 31, 47]  # and tokens

_COMMON = {
    'vocab_size': 48,
    'hidden_size': 24,
    'intermediate_size': 36,
    'num_hidden_layers': 2,
    'rms_norm_eps': 1e-5,
    'max_position_embeddings': 64,
}
CONFIGS = {
    'llama3 scaling, grouped heads': _COMMON
    | {
        'model_type': 'llama',
        'num_attention_heads': 6,
        'num_key_value_heads': 2,
        'head_dim': 8,
        'tie_word_embeddings': True,
        'attention_bias': True,
        'rope_theta': 10000.0,
        'rope_scaling': {
            'rope_type': 'llama3',
            'factor': 4.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': 16,
        },
    },
    'mistral, window of 5': _COMMON
    | {
        'model_type': 'mistral',
        'num_attention_heads': 4,
        'num_key_value_heads': 2,
        'head_dim': 8,
        'tie_word_embeddings': False,
        'rope_theta': 1000.0,
        'sliding_window': 5,
    },
}


def weights(config: dict) -> dict[str, np.ndarray]:
    """Weights by name; NumPy keeps RandomState's stream the same for ever."""
    d, f = config['hidden_size'], config['intermediate_size']
    n, m, h = (
        config[k] for k in ('num_attention_heads', 'num_key_value_heads', 'head_dim')
    )
    shapes = {'model.embed_tokens.weight': (config['vocab_size'], d)}
    if not config['tie_word_embeddings']:
        shapes['lm_head.weight'] = (config['vocab_size'], d)
    for i in range(config['num_hidden_layers']):
        p = f'model.layers.{i}.'
        projections = {'q': (n * h, d), 'k': (m * h, d), 'v': (m * h, d), 'o': (d, n * h)}
        for name, shape in projections.items():
            shapes[f'{p}self_attn.{name}_proj.weight'] = shape
            if 'attention_bias' in config:
                shapes[f'{p}self_attn.{name}_proj.bias'] = shape[:1]
        for name, shape in {'gate': (f, d), 'up': (f, d), 'down': (d, f)}.items():
            shapes[f'{p}mlp.{name}_proj.weight'] = shape
        for name in ('input_layernorm', 'post_attention_layernorm'):
            shapes[f'{p}{name}.weight'] = (d,)
    shapes['model.norm.weight'] = (d,)
    rng = np.random.RandomState(7)
    out = {}
    for name, shape in shapes.items():
        noise = rng.randn(*shape)
        out[name] = (1 + 0.3 * noise if 'norm' in name else 0.25 * noise).astype(np.float32)
    return out


GOLDEN = {
    'llama3 scaling, grouped heads': {
        0: [0.806546, -1.694857, -1.707708, 0.519442, 1.387984],
        6: [1.196919, 3.521442, -1.039779, 0.766913, -0.312401],
        19: [-0.531869, 3.622889, -2.778297, -0.364317, -1.286404],
    },
    'mistral, window of 5': {
        0: [1.526394, -1.076942, 0.839913, 0.874064, -0.234853],
        6: [0.019885, 3.081398, 1.556462, -2.867821, -0.532855],
        19: [-0.270224, -0.427788, 1.215233, 1.256502, 0.312225],
    },
}


@pytest.mark.parametrize('name', CONFIGS)
def test_logits(name, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(CONFIGS[name]))
    save_file(weights(CONFIGS[name]), tmp_path / 'model.safetensors')
    spec, params = load_model(tmp_path)
    ids = jnp.array([TOKENS], jnp.int32)
    ones = jnp.ones_like(ids)
    hidden = transformer.hidden_states(
        params,
        ids,
        jnp.arange(len(TOKENS))[None],
        ones,
        0 * ones,
        spec=spec,
        compute=transformer.Compute(),
    )
    logits = np.asarray(hidden @ transformer.head_weights(params).T)[0]
    for place, expected in GOLDEN[name].items():
        np.testing.assert_allclose(logits[place, SHOWN], expected, atol=1e-5, rtol=0)
