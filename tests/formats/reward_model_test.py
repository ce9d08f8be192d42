"""Score heads beside decoders."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from epa_jax.formats.names import FormatError
from epa_jax.formats.reward_model import is_reward_model, load_reward_model
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders


def write(folder, labels=1, **changes):
    """A decoder without lm_head, and its head."""
    config = folders.CONFIG | {'architectures': ['LlamaForSequenceClassification']}
    spec = spec_from_hf(folders.CONFIG | {'tie_word_embeddings': True}, 'x')
    params = folders.random_params(spec)
    folders.write_safetensors(folder, config | changes, params)
    file = folder / 'model.safetensors'
    tensors = load_file(file)
    tensors['score.weight'] = np.arange(labels * 16, dtype=np.float32).reshape(labels, 16)
    save_file(tensors, file, {'format': 'pt'})
    return params


def test_decoder_and_head_are_read(tmp_path):
    expected = write(tmp_path / 'm')
    spec, params, score = load_reward_model(tmp_path / 'm')
    assert score.tolist() == list(range(16))
    assert 'head' not in params
    assert spec.tie_embeddings
    np.testing.assert_array_equal(params['embed'], expected['embed'])
    np.testing.assert_array_equal(params['layers']['q'], expected['layers']['q'])


def test_what_is_no_reward_model_is_refused(tmp_path):
    write(tmp_path / 'two', labels=2)
    with pytest.raises(FormatError, match=r'score.weight: found \[\(2, 16\)\].*one label'):
        load_reward_model(tmp_path / 'two')
    write(tmp_path / 'causal', architectures=['LlamaForCausalLM'])
    with pytest.raises(FormatError, match=r"\['LlamaForCausalLM'\]: expected a reward"):
        load_reward_model(tmp_path / 'causal')
    with pytest.raises(FormatError, match=r'config\.json is missing'):
        load_reward_model(tmp_path)
    config = json.loads((tmp_path / 'two/config.json').read_text())
    spec = spec_from_hf({k: v for k, v in config.items() if k != 'architectures'}, 'x')
    folders.write_safetensors(tmp_path / 'bare', config, folders.random_params(spec))
    with pytest.raises(FormatError, match=r'score.weight: found none'):
        load_reward_model(tmp_path / 'bare')


def test_a_reward_model_is_told_by_its_architecture(tmp_path):
    write(tmp_path / 'reward', architectures=['GemmaForSequenceClassification'])
    write(tmp_path / 'causal', architectures=['LlamaForCausalLM'])
    (tmp_path / 'config.json').write_text('{"model.path": "somewhere"}')
    names = ('reward', 'causal', '.', 'nowhere')
    assert [is_reward_model(tmp_path / name) for name in names] == [True, *[False] * 3]
