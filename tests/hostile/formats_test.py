"""Model files that are damaged or made to harm: read, or refused by file and tensor."""

import json
import shutil

import flax.serialization
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import save_file

from epa_jax.formats import load, peft, reward_model
from epa_jax.formats.files import check_path
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.spec import SpecError
from tests import small_run
from tests.formats import folders
from tests.hostile import wild
from tests.hostile.wild import read_or_refuse

CONFIG = folders.CONFIG | {'num_hidden_layers': 1}
SPEC = spec_from_hf(CONFIG, 'here')
PARAMS = folders.random_params(SPEC)
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 64,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A good model in one file and in shards, as msgpack and GGUF; a tokenizer."""
    folder = tmp_path_factory.mktemp('models')
    folders.write_safetensors(folder / 'single', CONFIG, PARAMS)
    folders.write_safetensors(folder / 'shards', CONFIG, PARAMS, shards=2)
    folders.write_flax(folder / 'flax', CONFIG, PARAMS)
    small_run.tokenizer().save_pretrained(folder / 'single')
    return folder


@wild.examples(200)
@hypothesis.given(st.data())
def test_damaged_configurations(data):
    config = data.draw(wild.damaged(CONFIG | {'rope_scaling': LLAMA3}))
    path = 'here/config.json'

    def read():
        text = wild.dumps(config)
        return spec_from_hf(load.files.parse_json(text, path), path)

    spec = read_or_refuse(read, path)
    if spec is not None:
        assert len(load.names.HUGGING_FACE.expected(spec)) < 200_000


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_hidden_layers': 10**9}, '1000000000 layers; expected at most 10000'),
        ({'vocab_size': 2**31}, 'vocab_size=2147483648: expected a positive integer up'),
        ({'rope_theta': wild.HUGE}, r'rope_theta=1000.*\.\.\..*: expected a positive num'),
        ({'rms_norm_eps': float('nan')}, 'rms_norm_eps=nan: expected a positive number'),
    ],
)
def test_sizes_that_no_model_has(changes, message):
    with pytest.raises(SpecError, match=message):
        spec_from_hf(CONFIG | changes, 'here')


@wild.examples(25)
@hypothesis.given(st.data())
def test_damaged_shard_indexes(folder, data):
    path = folder / 'shards' / 'model.safetensors.index.json'
    good = path.read_text()
    path.write_text(wild.dumps(data.draw(wild.damaged(json.loads(good)))))
    try:
        read_or_refuse(lambda: load.SAFETENSORS.tensors(folder / 'shards'), folder)
    finally:
        path.write_text(good)


@pytest.mark.parametrize(
    'name',
    [
        '../../etc/passwd',
        '/etc/passwd',
        '..',
        '.',
        '',
        'sub/model.safetensors',
        '..\\..\\secret',
        'C:secret',
        'a\0b',
        'a' * 300,
        5,
        None,
        ['model.safetensors'],
    ],
)
@pytest.mark.parametrize('kind', ['model.safetensors', 'flax_model.msgpack'])
def test_shards_stay_in_the_folder(tmp_path, monkeypatch, kind, name):
    """A file that is named from outside is not even looked for."""
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
    index = {'weight_map': {'model.norm.weight': name}}
    (tmp_path / f'{kind}.index.json').write_text(json.dumps(index))
    opened = []
    monkeypatch.setattr(load.safetensors, 'file_tensors', opened.append)
    monkeypatch.setattr(load.flax_msgpack, '_file_tensors', opened.append)
    with pytest.raises(FormatError, match=r'index\.json: tensor model\.norm\.weight'):
        load.load_model(tmp_path)
    assert opened == []


def tensors_of(path):
    for tensor in load.SAFETENSORS.tensors(path):
        tensor.read()


@wild.examples(150)
@hypothesis.given(st.data())
def test_damaged_safetensors_headers(folder, data):
    """Offsets, shapes and dtypes that lie; sizes that do not fit."""
    target = folder / 'header'
    target.mkdir(exist_ok=True)
    values = {'a': np.ones((2, 3), np.float32), 'b': np.ones(0, np.float16)}
    save_file(values, target / 'model.safetensors')
    whole = (target / 'model.safetensors').read_bytes()
    size = int.from_bytes(whole[:8], 'little')
    header = data.draw(wild.damaged(json.loads(whole[8 : 8 + size])))
    text = wild.dumps(header).encode()
    length = data.draw(st.sampled_from([len(text)] * 5 + [0, 2**31, 2**63, 2**64 - 1]))
    content = length.to_bytes(8, 'little') + text + whole[8 + size :]
    (target / 'model.safetensors').write_bytes(content)
    read_or_refuse(lambda: tensors_of(target), target)


msgpack_leaves = st.one_of(
    wild.values,
    st.builds(
        lambda shape, dtype: np.zeros(shape, dtype),
        st.lists(st.integers(0, 2), max_size=3),
        st.sampled_from(['float32', 'float16', 'int8', 'float64', 'bool']),
    ),
)


@wild.examples(25)
@hypothesis.given(st.data())
def test_damaged_msgpack(folder, data):
    path = folder / 'flax' / 'flax_model.msgpack'
    good = path.read_bytes()
    try:
        path.write_bytes(data.draw(wild.cut_or_changed(good)))
        read_or_refuse(lambda: load.load_model(folder / 'flax'), folder)
    finally:
        path.write_bytes(good)


@wild.examples(25)
@hypothesis.given(st.dictionaries(st.text(max_size=5), msgpack_leaves, max_size=4))
def test_trees_that_hold_more_than_weights(folder, tree):
    path = folder / 'tree' / 'flax_model.msgpack'
    path.parent.mkdir(exist_ok=True)
    try:
        path.write_bytes(flax.serialization.msgpack_serialize(tree))
    except (OverflowError, UnicodeEncodeError, ValueError):
        hypothesis.assume(False)

    def read():
        for tensor in load.FLAX.tensors(path.parent):
            tensor.read()

    read_or_refuse(read, path)


def test_msgpack_maps_within_maps(tmp_path):
    (tmp_path / 'flax_model.msgpack').write_bytes(b'\x81\xa1a' * wild.DEEP)
    with pytest.raises(FormatError, match='nested more than 32 deep'):
        load.FLAX.tensors(tmp_path)


ADAPTER = peft.config_of(peft.Lora(2, 4.0, ('q',), False), '../single')


@wild.examples(80)
@hypothesis.given(st.data())
def test_damaged_adapter_configurations(folder, data):
    target = folder / 'adapter'
    target.mkdir(exist_ok=True)
    (target / 'adapter_config.json').write_text(
        wild.dumps(
            data.draw(wild.damaged(ADAPTER | {'base_model_name_or_path': '../single'}))
        )
    )
    zeros = {
        f'base_model.model.model.layers.0.self_attn.q_proj.lora_{end}.weight': np.zeros(
            (2, 16) if end == 'A' else (32, 2), np.float32
        )
        for end in 'AB'
    }
    save_file(zeros, target / 'adapter_model.safetensors')

    def read():
        for adapter in peft.open_chain(target):
            peft.read_adapter(adapter, SPEC)

    read_or_refuse(read, target)


def test_an_adapter_that_is_its_own_base(tmp_path):
    (tmp_path / 'adapter_config.json').write_text(
        json.dumps(ADAPTER | {'base_model_name_or_path': str(tmp_path)})
    )
    save_file({}, tmp_path / 'adapter_model.safetensors')
    for read in (load_tokenizer, load.load_model, load.load_spec):
        with pytest.raises(FormatError, match='the adapter is its own base'):
            read(tmp_path)


@wild.examples(60)
@hypothesis.given(st.data())
def test_damaged_reward_models(data):
    config = CONFIG | {'architectures': ['LlamaForSequenceClassification']}
    config = data.draw(wild.damaged(config))
    hypothesis.assume(isinstance(config, dict))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model.files, 'read_json', lambda path: config)
        patch.setattr(reward_model.Path, 'is_file', lambda path: True)
        read_or_refuse(lambda: reward_model.is_reward_model(reward_model.Path('m')), 'm')
        read_or_refuse(lambda: reward_model.load_reward_spec('m'), 'm')


@pytest.mark.parametrize('path', ['a' * 5000, 'a\0b', '\ud800'])
def test_paths_that_no_system_has(path):
    for read in (load.load_model, load.load_spec, load_tokenizer, check_path):
        with pytest.raises(FormatError, match='cannot be looked for'):
            read(load.Path(path))


def test_nothing_is_unpickled(tmp_path, folder):
    sprung = tmp_path / 'sprung'
    names = ['pytorch_model.bin', 'model.pt', 'model.safetensors', 'flax_model.msgpack']
    names += ['config.json', 'tokenizer.json', 'model.gguf', 'adapter_model.safetensors']
    for name in names:
        target = tmp_path / f'with {name}'
        shutil.copytree(folder / 'single', target)
        (target / name).write_bytes(wild.trap(sprung))
        if name in ('pytorch_model.bin', 'model.pt', 'flax_model.msgpack'):
            (target / 'model.safetensors').unlink()
        for path in (target, target / name):
            read_or_refuse(lambda path=path: load.load_model(path), target)
            read_or_refuse(lambda path=path: load_tokenizer(path), target)
    assert not sprung.exists()
