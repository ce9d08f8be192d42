"""Exported folders are exact, complete or not there."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from epa_jax.formats import export, safetensors
from epa_jax.formats.export import export_model
from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.spec import SpecError
from epa_jax.models.transformer import logical_axes
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')
TIED = dataclasses.replace(SPEC, tie_embeddings=True, attention_bias=False)


@pytest.fixture
def params():
    return folders.random_params(SPEC)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
@pytest.mark.parametrize('spec', [SPEC, TIED])
def test_round_trip_is_exact(tmp_path, spec, dtype):
    params = folders.random_params(spec)
    out = export_model(tmp_path / 'm', spec, params, dtype=dtype)
    assert out == tmp_path / 'm'
    again, loaded = load_model(out)
    assert again == spec
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    stored = load_file(out / 'model.safetensors')
    expected = folders.hf_tensors(params)
    assert set(stored) == set(expected)
    for name, value in expected.items():
        assert stored[name].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(stored[name].astype(np.float32), value)


def test_rounds_to_nearest_bfloat16(tmp_path):
    params = jax.tree.map(lambda p: p * np.float32(1.003), folders.random_params(SPEC))
    export_model(tmp_path / 'm', SPEC, params)
    _, loaded = load_model(tmp_path / 'm')
    expected = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_files_and_configs(tmp_path, params):
    export_model(tmp_path / 'm', SPEC, params, dtype='bfloat16', model_card='# Card\n')
    assert names(tmp_path) == ['m']
    assert names(tmp_path / 'm') == [
        'README.md',
        'config.json',
        'generation_config.json',
        'model.safetensors',
    ]
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    assert config['torch_dtype'] == 'bfloat16'
    assert config['architectures'] == ['LlamaForCausalLM']
    assert json.loads((tmp_path / 'm' / 'generation_config.json').read_text()) == {}
    assert (tmp_path / 'm' / 'README.md').read_text() == '# Card\n'
    assert (tmp_path / 'm').stat().st_mode & 0o777 == 0o755


def test_tokenizer_and_its_ids(tmp_path, params, shared_data):
    tokenizer = load_tokenizer(shared_data / 'stories260k')
    tokenizer.chat_template = '{{ messages[0].content }}'
    out = export_model(tmp_path / 'm', SPEC, params, tokenizer)
    config = json.loads((out / 'config.json').read_text())
    ids = {'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2}
    assert {key: config[key] for key in ids} == ids
    assert json.loads((out / 'generation_config.json').read_text()) == ids
    again = load_tokenizer(out)
    assert again.chat_template == tokenizer.chat_template
    text = 'Once upon a time'
    assert again(text).input_ids == tokenizer(text).input_ids


def test_shards(tmp_path, params):
    out = export_model(tmp_path / 'm', SPEC, params, dtype='float32', shard_bytes=10_000)
    index = json.loads((out / 'model.safetensors.index.json').read_text())
    sizes = {}
    for name, file in index['weight_map'].items():
        value = load_file(out / file)[name]
        sizes[file] = sizes.get(file, 0) + value.nbytes
    assert len(sizes) > 2
    assert max(sizes.values()) <= 10_000
    assert index['metadata']['total_size'] == sum(sizes.values())
    assert sorted(sizes) == [p.name for p in sorted(out.glob('*.safetensors'))]
    assert set(index['weight_map']) == set(folders.hf_tensors(params))
    jax.tree.map(np.testing.assert_array_equal, load_model(out)[1], params)


def test_tensor_larger_than_a_shard_has_its_own(tmp_path, params):
    out = export_model(tmp_path / 'm', SPEC, params, dtype='float32', shard_bytes=1)
    assert len(list(out.glob('*.safetensors'))) == len(folders.hf_tensors(params))
    jax.tree.map(np.testing.assert_array_equal, load_model(out)[1], params)


def test_sharded_parameters_are_gathered(tmp_path, params):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'))
    axes = {'embed': 'fsdp', 'mlp': 'tensor', 'kv_heads': 'tensor'}

    def place(p, names):
        spec = PartitionSpec(*(axes.get(name) for name in names))
        return jax.device_put(p, NamedSharding(mesh, spec))

    placed = jax.tree.map(place, params, logical_axes(SPEC))
    export_model(tmp_path / 'm', SPEC, placed, dtype='float32')
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / 'm')[1], params)


def test_interrupted_export_leaves_nothing(tmp_path, params, monkeypatch):
    write, written = safetensors.write_file, []

    def dies_at_the_second_file(path, *rest):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(export.safetensors, 'write_file', dies_at_the_second_file)
    with pytest.raises(KeyboardInterrupt):
        export_model(tmp_path / 'm', SPEC, params, shard_bytes=5_000)
    assert written
    assert names(tmp_path) == []


def test_existing_folder_is_kept_unless_told(tmp_path, params):
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm' / 'mine.txt').write_text('x')
    with pytest.raises(FormatError, match='exists; remove it'):
        export_model(tmp_path / 'm', SPEC, params)
    assert names(tmp_path / 'm') == ['mine.txt']
    export_model(tmp_path / 'm', SPEC, params, overwrite=True)
    assert load_spec(tmp_path / 'm') == SPEC
    assert names(tmp_path) == ['m']
    assert 'mine.txt' not in names(tmp_path / 'm')


def test_parameters_of_another_model(tmp_path, params):
    with pytest.raises(FormatError, match='the spec describes'):
        export_model(tmp_path / 'm', TIED, params)
    with pytest.raises(FormatError, match="dtype='int8': expected one of"):
        export_model(tmp_path / 'm', SPEC, params, dtype='int8')
    windowed = dataclasses.replace(SPEC, sliding_window=4)
    with pytest.raises(SpecError, match='no sliding_window'):
        export_model(tmp_path / 'm', windowed, params)
    assert names(tmp_path) == []
