"""config.json: known models read right, everything else refused."""

import dataclasses

import hypothesis
import pytest
import transformers
from hypothesis import strategies as st

from epa_jax.models.hf_config import spec_from_hf, spec_to_hf
from epa_jax.models.spec import ModelSpec, RopeScaling, SpecError

# In the form in which Llama-3.1-8B-Instruct, Mistral-7B-v0.1 and SmolLM2-135M-Instruct
# are published.
LLAMA_31_8B = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 128000,
    'eos_token_id': [128001, 128008, 128009],
    'hidden_act': 'silu',
    'hidden_size': 4096,
    'initializer_range': 0.02,
    'intermediate_size': 14336,
    'max_position_embeddings': 131072,
    'mlp_bias': False,
    'model_type': 'llama',
    'num_attention_heads': 32,
    'num_hidden_layers': 32,
    'num_key_value_heads': 8,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_scaling': {
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 8192,
        'rope_type': 'llama3',
    },
    'rope_theta': 500000.0,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.42.3',
    'use_cache': True,
    'vocab_size': 128256,
}
MISTRAL_7B = {
    'architectures': ['MistralForCausalLM'],
    'bos_token_id': 1,
    'eos_token_id': 2,
    'hidden_act': 'silu',
    'hidden_size': 4096,
    'initializer_range': 0.02,
    'intermediate_size': 14336,
    'max_position_embeddings': 32768,
    'model_type': 'mistral',
    'num_attention_heads': 32,
    'num_hidden_layers': 32,
    'num_key_value_heads': 8,
    'rms_norm_eps': 1e-05,
    'rope_theta': 10000.0,
    'sliding_window': 4096,
    'tie_word_embeddings': False,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.34.0.dev0',
    'use_cache': True,
    'vocab_size': 32000,
}
SMOLLM2 = {
    'architectures': ['LlamaForCausalLM'],
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'hidden_act': 'silu',
    'hidden_size': 576,
    'initializer_range': 0.041666666666666664,
    'intermediate_size': 1536,
    'is_llama_config': True,
    'max_position_embeddings': 8192,
    'mlp_bias': False,
    'model_type': 'llama',
    'num_attention_heads': 9,
    'num_hidden_layers': 30,
    'num_key_value_heads': 3,
    'pad_token_id': 2,
    'pretraining_tp': 1,
    'rms_norm_eps': 1e-05,
    'rope_interleaved': False,
    'rope_scaling': None,
    'rope_theta': 100000,
    'tie_word_embeddings': True,
    'torch_dtype': 'bfloat16',
    'transformers.js_config': {'kv_cache_dtype': {'q4f16': 'float16'}},
    'transformers_version': '4.42.3',
    'use_cache': True,
    'vocab_size': 49152,
}


def test_llama_3():
    assert spec_from_hf(LLAMA_31_8B, 'f') == ModelSpec(
        model_type='llama',
        vocab_size=128256,
        d_model=4096,
        d_ff=14336,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=5e5,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
        sliding_window=None,
        tie_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        max_positions=131072,
    )


def test_mistral_and_smollm2():
    mistral = spec_from_hf(MISTRAL_7B, 'f')
    assert (mistral.model_type, mistral.sliding_window) == ('mistral', 4096)
    no_window = spec_from_hf(MISTRAL_7B | {'sliding_window': None}, 'f')
    assert no_window == dataclasses.replace(mistral, sliding_window=None)
    smol = spec_from_hf(SMOLLM2, 'f')
    assert (smol.head_dim, smol.rope_theta, smol.tie_embeddings) == (64, 1e5, True)


@pytest.mark.parametrize('config', [LLAMA_31_8B, MISTRAL_7B, SMOLLM2])
def test_transformers_5_spelling_says_the_same(config):
    kind = transformers.CONFIG_MAPPING[config['model_type']]
    theirs = kind.from_dict(config)
    spec = spec_from_hf(config, 'f')
    assert 'rope_parameters' in theirs.to_diff_dict()
    assert spec_from_hf(theirs.to_diff_dict(), 'f') == spec
    assert spec_from_hf(theirs.to_dict(), 'f') == spec


@pytest.mark.parametrize('kind', ['llama', 'mistral'])
def test_absent_keys_mean_what_they_mean_to_transformers(kind):
    required = {
        'model_type': kind,
        'vocab_size': 48,
        'hidden_size': 64,
        'intermediate_size': 24,
        'num_hidden_layers': 2,
        'num_attention_heads': 8,
    }
    theirs = transformers.CONFIG_MAPPING[kind].from_dict(required).to_dict()
    assert spec_from_hf(required, 'f') == spec_from_hf(theirs, 'f')
    nulls = required | {'num_key_value_heads': None, 'head_dim': None}
    assert spec_from_hf(nulls, 'f').n_kv_heads == 8
    for key in required:
        with pytest.raises(SpecError, match=f'^f: {key} is missing'):
            spec_from_hf({k: v for k, v in required.items() if k != key}, 'f')


def scaled(**changes):
    return LLAMA_31_8B | {'rope_scaling': LLAMA_31_8B['rope_scaling'] | changes}


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        (LLAMA_31_8B | {'model_type': 'qwen2'}, "model_type='qwen2': expected one of"),
        (LLAMA_31_8B | {'hidden_act': 'gelu'}, "hidden_act='gelu' is not implemented"),
        (LLAMA_31_8B | {'attention_dropout': 0.1}, 'attention_dropout=0.1 is not'),
        (LLAMA_31_8B | {'sliding_window': 512}, 'sliding_window=512 is not implemented'),
        (MISTRAL_7B | {'attention_bias': True}, 'attention_bias=True is not implemented'),
        (LLAMA_31_8B | {'logit_scale': 0.5}, 'unknown logit_scale=0.5'),
        (LLAMA_31_8B | {'quantization_config': {'bits': 4}}, 'quantization_config='),
        (LLAMA_31_8B | {'auto_map': {'AutoModel': 'x.Y'}}, 'auto_map='),
        (
            LLAMA_31_8B | {'architectures': ['LlamaForSequenceClassification']},
            'LlamaForSequenceClassification',
        ),
        (MISTRAL_7B | {'hidden_size': '4096'}, "hidden_size='4096': expected a positive"),
        (MISTRAL_7B | {'num_hidden_layers': 0}, 'num_hidden_layers=0: expected a positive'),
        (MISTRAL_7B | {'num_hidden_layers': True}, 'num_hidden_layers=True: expected'),
        (MISTRAL_7B | {'rms_norm_eps': float('nan')}, 'rms_norm_eps=nan'),
        (MISTRAL_7B | {'vocab_size': None}, 'vocab_size=None'),
        (MISTRAL_7B | {'tie_word_embeddings': 1}, 'tie_word_embeddings=1: expected a bool'),
        (MISTRAL_7B | {'num_key_value_heads': 5}, 'cannot share 5'),
        (MISTRAL_7B | {'sliding_window': -1}, 'sliding_window=-1'),
        (scaled(rope_type='yarn'), "rope_scaling: rope_type='yarn' is not implemented"),
        (scaled(beta_fast=32), 'rope_scaling: unknown beta_fast=32'),
        (scaled(factor='8'), "rope_scaling: factor='8'"),
        (scaled(low_freq_factor=4.0), 'must be below'),
        (scaled(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5'),
        (scaled(rope_theta=10000.0), 'contradicts rope_theta=500000.0'),
        (scaled(type='linear'), "contradicts type='linear'"),
        (LLAMA_31_8B | {'rope_parameters': {'rope_type': 'default'}}, 'differ'),
        (LLAMA_31_8B | {'rope_scaling': {'type': 'linear', 'factor': 2.0}}, "'linear'"),
        (LLAMA_31_8B | {'rope_scaling': {'factor': 2.0}}, 'unknown factor=2.0'),
        (LLAMA_31_8B | {'layer_types': ['full_attention'] * 32}, 'layer_types='),
    ],
)
def test_refuses(config, message):
    with pytest.raises(SpecError) as error:
        spec_from_hf(config, 'dir/config.json')
    assert str(error.value).startswith('dir/config.json: ')
    assert message in str(error.value)


def test_scaling_that_lacks_a_key():
    scaling = dict(LLAMA_31_8B['rope_scaling'])
    del scaling['original_max_position_embeddings']
    config = LLAMA_31_8B | {'rope_scaling': scaling}
    with pytest.raises(SpecError, match='original_max_position_embeddings is missing'):
        spec_from_hf(config, 'f')


@st.composite
def specs(draw):
    kind = draw(st.sampled_from(['llama', 'mistral']))
    llama = kind == 'llama'
    kv, group, width = (draw(st.integers(1, 5)) for _ in range(3))
    heads = kv * group
    scaling = RopeScaling(draw(st.floats(1, 64)), 1.0, draw(st.floats(1.5, 8)), 8192)
    return ModelSpec(
        model_type=kind,
        vocab_size=draw(st.integers(1, 10**6)),
        d_model=heads * draw(st.integers(1, 64)),
        d_ff=draw(st.integers(1, 10**5)),
        n_layers=draw(st.integers(1, 200)),
        n_heads=heads,
        n_kv_heads=kv,
        head_dim=2 * width,
        norm_eps=draw(st.floats(1e-8, 1e-2)),
        rope_theta=draw(st.floats(1.0, 1e8)),
        rope_scaling=draw(st.sampled_from([None, scaling])),
        sliding_window=None if llama else draw(st.sampled_from([None, 1, 4096])),
        tie_embeddings=draw(st.booleans()),
        attention_bias=llama and draw(st.booleans()),
        mlp_bias=llama and draw(st.booleans()),
        max_positions=draw(st.integers(1, 10**7)),
    )


@hypothesis.given(specs())
def test_round_trip(spec):
    config = spec_to_hf(spec, 'bfloat16', bos=1, eos=2)
    assert spec_from_hf(config, 'f') == spec
    theirs = transformers.CONFIG_MAPPING[spec.model_type].from_dict(config)
    assert spec_from_hf(theirs.to_diff_dict(), 'f') == spec
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, None)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'sliding_window': 8}, "model_type='llama' has no sliding_window"),
        ({'model_type': 'mistral', 'mlp_bias': True}, "model_type='mistral' has no biases"),
        ({'d_model': 4097}, 'needs d_model=4097 to be a multiple of n_heads=32'),
        ({'model_type': 'gemma'}, "model_type='gemma': expected"),
    ],
)
def test_inexpressible(change, message):
    spec = dataclasses.replace(spec_from_hf(LLAMA_31_8B, 'f'), **change)
    with pytest.raises(SpecError, match=message):
        spec_to_hf(spec, 'bfloat16')
