"""Adapters in PEFT's layout, spelled out a second time after PEFT's own files."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from epa_jax.formats import peft
from epa_jax.formats.export import export_adapter, export_model
from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.lora import Lora, abstract_adapters
from tests import small_run, tiny
from tests.models.lora_test import SOME, adapters, by_hand

FOUND = adapters(tiny.SPEC, SOME)
# what PEFT 0.21 writes, values that change nothing included
THEIRS = {
    'alora_invocation_tokens': None,
    'alpha_pattern': {},
    'auto_mapping': None,
    'base_model_name_or_path': 'model',
    'bias': 'none',
    'ensure_weight_tying': False,
    'eva_config': None,
    'exclude_modules': None,
    'fan_in_fan_out': False,
    'inference_mode': True,
    'init_lora_weights': True,
    'layers_to_transform': None,
    'loftq_config': {},
    'lora_alpha': 8,
    'lora_bias': False,
    'lora_dropout': 0.05,
    'megatron_core': 'megatron.core',
    'modules_to_save': None,
    'peft_type': 'LORA',
    'peft_version': '0.21.2',
    'qalora_group_size': 16,
    'r': 2,
    'rank_pattern': {},
    'revision': None,
    'target_modules': ['q_proj', 'o_proj', 'down_proj'],
    'task_type': 'CAUSAL_LM',
    'use_dora': False,
    'use_rslora': False,
}


@pytest.fixture
def folder(tmp_path):
    """A model, and beside it an adapter written without the package."""
    export_model(
        tmp_path / 'model', tiny.SPEC, tiny.params(), small_run.tokenizer(), 'float32'
    )
    write_adapter(tmp_path / 'adapter', {'base_model_name_or_path': '../model'})
    return tmp_path


def theirs(found, matrices):
    """PEFT's state dict: lora_A [r, inputs], lora_B [outputs, r]."""
    blocks = dict.fromkeys(('q', 'k', 'v', 'o'), 'self_attn') | dict.fromkeys(
        ('gate', 'up', 'down'), 'mlp'
    )
    out = {}
    for name in matrices:
        down = np.asarray(found['layers'][f'{name}_lora_a'])
        up = np.asarray(found['layers'][f'{name}_lora_b'])
        for i in range(len(down)):
            rank = up.shape[1]
            stem = f'base_model.model.model.layers.{i}.{blocks[name]}.{name}_proj'
            a, b = down[i].reshape(-1, rank).T, up[i].reshape(rank, -1).T
            out[f'{stem}.lora_A.weight'] = np.ascontiguousarray(a)
            out[f'{stem}.lora_B.weight'] = np.ascontiguousarray(b)
    return out


def write_adapter(folder, changes, found=FOUND, matrices=SOME.matrices, drop=()):
    folder.mkdir(exist_ok=True)
    config = THEIRS | changes
    (folder / 'adapter_config.json').write_text(json.dumps(config))
    tensors = theirs(found, matrices)
    for name in drop:
        del tensors[name]
    save_file(tensors, folder / 'adapter_model.safetensors')


def equal(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected
    )


def test_an_adapter_is_merged_into_its_base(folder):
    spec, params = load_model(folder / 'adapter')
    assert spec == load_spec(folder / 'adapter') == tiny.SPEC
    equal(params, by_hand(tiny.params(), FOUND, 4.0), rtol=1e-5, atol=1e-6)
    assert len(load_tokenizer(folder / 'adapter')) == 48


def test_rank_stabilized(folder):
    write_adapter(
        folder / 'adapter', {'base_model_name_or_path': '../model', 'use_rslora': True}
    )
    equal(
        load_model(folder / 'adapter')[1],
        by_hand(tiny.params(), FOUND, 8 / 2**0.5),
        rtol=1e-5,
        atol=1e-6,
    )


def test_onto_a_mesh(folder):
    mesh = Mesh(np.array(jax.devices()[:2]), ('x',))
    where = jax.tree.map(lambda p: NamedSharding(mesh, PartitionSpec()), tiny.params())
    where['layers']['q'] = NamedSharding(mesh, PartitionSpec(None, 'x'))
    _, params = load_model(folder / 'adapter', 'float32', where)
    equal(params, by_hand(tiny.params(), FOUND, 4.0), rtol=1e-5, atol=1e-6)
    assert params['layers']['q'].sharding == where['layers']['q']


def test_an_adapter_of_an_adapter(folder):
    changes = {'base_model_name_or_path': str(folder / 'adapter')}
    write_adapter(folder / 'second', changes)
    equal(
        load_model(folder / 'second')[1],
        by_hand(tiny.params(), FOUND, 8.0),
        rtol=1e-5,
        atol=1e-6,
    )
    write_adapter(folder / 'adapter', {'base_model_name_or_path': '../second'})
    with pytest.raises(FormatError, match='the adapter is its own base'):
        load_spec(folder / 'second')


@pytest.mark.parametrize('lora', [SOME, Lora(3, 5.0, rank_stabilized=True)])
def test_what_is_written_is_the_layout_of_peft(folder, lora):
    found, out = adapters(tiny.SPEC, lora), folder / 'out'
    base = str(folder / 'model')
    export_adapter(out, tiny.SPEC, found, lora, base, small_run.tokenizer(), 'a card')
    stored = load_file(out / 'adapter_model.safetensors')
    expected = theirs(found, lora.matrices)
    assert stored.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(stored[name], value)
    opened = peft.open_adapter(out)
    assert (opened.lora, opened.base) == (lora, folder / 'model')
    equal(peft.read_adapter(opened, tiny.SPEC), found)
    assert (out / 'README.md').read_text() == 'a card'
    assert (out / 'tokenizer.json').is_file()
    with pytest.raises(FormatError, match='exists; remove it'):
        export_adapter(out, tiny.SPEC, found, lora, base)


def test_sharded_adapters_are_gathered(folder):
    mesh = Mesh(np.array(jax.devices()[:2]), ('x',))
    spread = {'layers': dict(FOUND['layers'])}
    for name, place in (('q_lora_a', (None, 'x')), ('q_lora_b', (None, None, 'x'))):
        where = NamedSharding(mesh, PartitionSpec(*place))
        spread['layers'][name] = jax.device_put(spread['layers'][name], where)
    export_adapter(folder / 'out', tiny.SPEC, spread, SOME, str(folder / 'model'))
    equal(peft.read_adapter(peft.open_adapter(folder / 'out'), tiny.SPEC), FOUND)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'peft_type': 'IA3'}, r"peft_type='IA3': expected one of 'LORA'"),
        ({'use_dora': True}, r'use_dora=True is not read here; merge the adapter'),
        ({'rank_pattern': {'q_proj': 4}}, r'rank_pattern=.* is not read here'),
        ({'modules_to_save': ['embed_tokens']}, r'modules_to_save=.* is not read here'),
        ({'init_lora_weights': 'pissa'}, r"init_lora_weights='pissa': expected one of"),
        ({'a_new_key': 3}, r'a_new_key=3 is not read here'),
        ({'bias': 'all'}, r"bias='all': expected one of 'none'"),
        ({'r': 0}, r'r=0: expected a whole number from 1'),
        ({'r': True}, r'r=True: expected a whole number'),
        ({'lora_alpha': '8'}, r"lora_alpha='8': expected a number above 0"),
        ({'base_model_name_or_path': 'org/name'}, r"'org/name': no such model on this"),
        ({'base_model_name_or_path': None}, r'base_model_name_or_path=None'),
        ({'r': 3}, r'has shape \(2, \d+\); the configuration wants \(3, '),
    ],
)
def test_what_is_not_understood_is_refused(folder, changes, message):
    write_adapter(folder / 'adapter', {'base_model_name_or_path': '../model'} | changes)
    with pytest.raises(FormatError, match=message):
        load_model(folder / 'adapter')


def test_a_layer_without_its_adapter_is_refused(folder):
    missing = 'base_model.model.model.layers.1.mlp.down_proj.lora_B.weight'
    changes = {'base_model_name_or_path': '../model'}
    write_adapter(folder / 'adapter', changes, drop=[missing])
    with pytest.raises(FormatError, match=rf'1 tensors are missing: {missing}'):
        load_model(folder / 'adapter')


def test_an_adapter_of_other_parts_is_refused(folder):
    path = folder / 'adapter/adapter_model.safetensors'
    tensors = load_file(path)
    tensors['base_model.model.lm_head.lora_A.weight'] = np.zeros((2, 16), np.float32)
    save_file(tensors, path)
    with pytest.raises(FormatError, match=r'unexpected tensor base_model.model.lm_head'):
        load_model(folder / 'adapter')


def test_shapes_are_those_of_the_tree():
    found = abstract_adapters(tiny.SPEC, SOME)
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(np.shape, FOUND)
