"""Every format gives the same parameters."""

import dataclasses
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.names import FormatError
from epa_jax.models import transformer
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')
TIED = dataclasses.replace(SPEC, tie_embeddings=True)
TIED_CONFIG = folders.CONFIG | {'tie_word_embeddings': True}


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('write', [folders.write_safetensors, folders.write_flax])
def test_folder_is_loaded_exactly(tmp_path, write, dtype):
    params = folders.random_params(SPEC)
    folder = write(tmp_path / 'm', folders.CONFIG, params, dtype)
    spec, loaded = load_model(folder)
    assert spec == SPEC == load_spec(folder)
    assert {p.dtype for p in jax.tree.leaves(loaded)} == {jnp.dtype('float32')}
    assert_equal(loaded, params)


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_gguf_is_loaded_exactly(tmp_path, dtype):
    params = folders.random_params(SPEC)
    tensors = folders.gguf_tensors(params)
    kinds = {
        'float16': gguf.GGMLQuantizationType.F16,
        'bfloat16': gguf.GGMLQuantizationType.BF16,
    }
    kinds = dict.fromkeys(tensors, kinds[dtype]) if dtype in kinds else {}
    path = tmp_path / 'm.gguf'
    folders.write_gguf(path, folders.gguf_metadata(SPEC), tensors, kinds)
    spec, loaded = load_model(path)
    assert spec == SPEC == load_spec(path)
    assert_equal(loaded, params)


@pytest.mark.parametrize('write', [folders.write_safetensors, folders.write_flax])
def test_tied_model_has_no_head(tmp_path, write):
    params = folders.random_params(TIED)
    spec, loaded = load_model(write(tmp_path / 'm', TIED_CONFIG, params))
    assert spec == TIED
    assert 'head' not in loaded
    assert_equal(loaded, params)


def test_gguf_without_output_is_tied(tmp_path):
    params = folders.random_params(TIED)
    path = tmp_path / 'm.gguf'
    tensors = folders.gguf_tensors(params)
    folders.write_gguf(path, folders.gguf_metadata(TIED), tensors)
    spec, loaded = load_model(path)
    assert spec == TIED
    assert_equal(loaded, params)


def test_shards_of_both_folder_formats(tmp_path):
    params = folders.random_params(SPEC)
    folder = tmp_path / 'm'
    folders.write_safetensors(folder, folders.CONFIG, params, shards=3)
    assert_equal(load_model(folder)[1], params)


def test_casts_to_the_parameter_dtype(tmp_path):
    params = jax.tree.map(lambda p: p + 1e-4, folders.random_params(SPEC))
    folder = folders.write_safetensors(tmp_path / 'm', folders.CONFIG, params)
    _, loaded = load_model(folder, 'bfloat16')
    assert {p.dtype for p in jax.tree.leaves(loaded)} == {jnp.dtype('bfloat16')}
    assert_equal(loaded, jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))


def test_places_parameters_on_a_mesh(tmp_path):
    params = folders.random_params(TIED)
    folder = folders.write_safetensors(tmp_path / 'm', TIED_CONFIG, params)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'))
    axes = {'embed': 'fsdp', 'mlp': 'tensor', 'kv_heads': 'tensor'}

    def sharding(names):
        return NamedSharding(mesh, PartitionSpec(*(axes.get(n) for n in names)))

    shardings = jax.tree.map(
        sharding, transformer.logical_axes(TIED), is_leaf=lambda x: isinstance(x, tuple)
    )
    _, loaded = load_model(folder, shardings=shardings)
    assert_equal(loaded, params)
    assert jax.tree.map(lambda p: p.sharding, loaded) == shardings
    assert loaded['layers']['gate'].addressable_shards[0].data.shape == (3, 4, 12)


def test_host_holds_one_tensor_at_a_time(tmp_path, monkeypatch):
    """No tensor is read before the one before it has been handed to the device."""
    from epa_jax.formats import assemble

    events = []
    params = folders.random_params(SPEC)
    folder = folders.write_safetensors(tmp_path / 'm', folders.CONFIG, params)
    to_leaf, write = assemble.to_leaf, assemble._write

    def reading(*args):
        events.append('read')
        return to_leaf(*args)

    def writing(*args):
        events.append('write')
        return write(*args)

    monkeypatch.setattr(assemble, 'to_leaf', reading)
    monkeypatch.setattr(assemble, '_write', writing)
    load_model(folder)
    assert events == ['read', 'write'] * len(folders.hf_tensors(params))


def test_stories_model_writes_english(shared_data):
    """Greedy text of the real 260k-parameter model, token by token."""
    from epa_jax.formats.tokenizer import load_tokenizer

    path = shared_data / 'stories260k'
    spec, params = load_model(path)
    tokenizer = load_tokenizer(path)
    ids = tokenizer('Once upon a time').input_ids
    assert ids[0] == tokenizer.bos_token_id
    length = 60
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(ids)] = ids

    @jax.jit
    def best(tokens):
        ones = jnp.ones_like(tokens)
        hidden = transformer.hidden_states(
            params,
            tokens,
            jnp.arange(length)[None],
            ones,
            0 * ones,
            spec=spec,
            compute=transformer.Compute(),
        )
        return jnp.argmax(hidden @ transformer.head_weights(params).T, axis=-1)

    for i in range(len(ids), length):
        tokens[0, i] = best(tokens)[0, i - 1]
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert text.startswith(
        'Once upon a time, there was a little girl named Lily. She loved to play outside '
        'in the park. One day, she saw a big, red ball'
    )


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ([], 'expected a folder with config.json'),
        (['pytorch_model.bin'], 'only pickled PyTorch weights'),
        (['pytorch_model-00001-of-00002.bin'], 'only pickled PyTorch weights'),
        (['adapter_config.json'], r'adapter_config.json: not JSON'),
        (['a.gguf'], 'name the .gguf file in it: a.gguf'),
        (['model.safetensors'], 'config.json is missing'),
    ],
)
def test_says_what_was_found_instead(tmp_path, files, message):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(FormatError, match=message):
        load_model(tmp_path)


def test_path_that_is_not_there_or_no_model(tmp_path):
    with pytest.raises(FormatError, match='does not exist'):
        load_spec(tmp_path / 'no')
    (tmp_path / 'x.bin').touch()
    with pytest.raises(FormatError, match=r'is not a \.gguf file'):
        load_spec(tmp_path / 'x.bin')


def test_single_file_and_index_together_are_refused(tmp_path):
    params = folders.random_params(SPEC)
    folder = folders.write_safetensors(tmp_path / 'm', folders.CONFIG, params)
    folders.write_safetensors(folder, folders.CONFIG, params, shards=2)
    with pytest.raises(FormatError, match='remove the one that is outdated'):
        load_model(folder)


@pytest.mark.parametrize('file', ['../secret.safetensors', '/etc/x', '..', '', 5])
def test_index_cannot_leave_the_folder(tmp_path, file):
    params = folders.random_params(SPEC)
    folder = folders.write_safetensors(tmp_path / 'm', folders.CONFIG, params, shards=2)
    index = folder / 'model.safetensors.index.json'
    content = json.loads(index.read_text())
    content['weight_map']['model.norm.weight'] = file
    index.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r'model\.norm\.weight .* a file name in the'):
        load_model(folder)


def test_index_that_points_to_the_wrong_shard(tmp_path):
    params = folders.random_params(SPEC)
    folder = folders.write_safetensors(tmp_path / 'm', folders.CONFIG, params, shards=2)
    index = folder / 'model.safetensors.index.json'
    content = json.loads(index.read_text())
    name = sorted(content['weight_map'])[0]
    del content['weight_map'][name]
    index.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=f'{name} is not there according to'):
        load_model(folder)
