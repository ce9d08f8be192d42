"""Tensors that do not fit the architecture are refused by name, before any is read."""

import numpy as np
import pytest

from epa_jax.formats.assemble import StoredTensor, assemble
from epa_jax.formats.names import HUGGING_FACE, FormatError
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')
TIED = spec_from_hf(folders.CONFIG | {'tie_word_embeddings': True}, 'test')
K = 'model.layers.1.self_attn.k_proj.weight'


def tensors(values, read=None):
    return [
        StoredTensor(name, 'f.safetensors', value.shape, read or (lambda v=value: v))
        for name, value in values.items()
    ]


def never():
    raise AssertionError('read before all names were checked')


def refuses(stored, *parts, spec=SPEC):
    with pytest.raises(FormatError) as error:
        assemble(spec, HUGGING_FACE, stored)
    for part in ('f.safetensors', *parts):
        assert part in str(error.value)


@pytest.fixture
def values():
    return folders.hf_tensors(folders.random_params(SPEC))


def test_unknown(values):
    values['model.layers.3.self_attn.q_proj.weight'] = np.zeros((32, 16))
    refuses(tensors(values, never), 'model.layers.3.self_attn.q_proj.weight', 'unexpected')


def test_bias_that_the_config_does_not_have(values):
    plain = folders.CONFIG | {'attention_bias': False}
    name = 'model.layers.0.self_attn.q_proj.bias'
    refuses(tensors(values, never), name, spec=spec_from_hf(plain, 'test'))


def test_missing(values):
    del values[K]
    refuses(tensors(values, never), K, '1 tensors are missing')


def test_twice(values):
    stored = [*tensors(values, never), *tensors({K: values[K]}, never)]
    refuses(stored, K, '2 times')


def test_wrong_shape(values):
    values[K] = values[K].T
    values[K] = np.zeros((8, 16))
    refuses(tensors(values, never), K, '(8, 16)', '(16, 16)')


def test_wrong_shape_names_what_is_wanted(values):
    values['lm_head.weight'] = np.zeros((40, 16))
    refuses(tensors(values, never), 'lm_head.weight', '(40, 16)', '(48, 16)')


def test_rotary_buffers_of_old_checkpoints_are_ignored_by_name(values):
    plain = assemble(SPEC, HUGGING_FACE, tensors(values))
    stored = tensors(values)
    stored += tensors({'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(4)}, never)
    with_buffers = assemble(SPEC, HUGGING_FACE, stored)
    np.testing.assert_array_equal(with_buffers['layers']['q'], plain['layers']['q'])


@pytest.mark.parametrize('first', [True, False])
def test_head_beside_a_tied_embedding_must_equal_it(values, first):
    head = {'lm_head.weight': values['model.embed_tokens.weight'].copy()}
    del values['lm_head.weight']
    both = head | values if first else values | head
    assert 'head' not in assemble(TIED, HUGGING_FACE, tensors(both))
    both['lm_head.weight'][5, 3] += 1
    refuses(tensors(both), 'lm_head.weight', 'differs from the embedding', spec=TIED)
    both['lm_head.weight'] = np.zeros((48, 8))
    refuses(tensors(both), 'lm_head.weight', 'differs from the embedding', spec=TIED)


def test_tied_head_twice(values):
    embed = values['model.embed_tokens.weight']
    del values['lm_head.weight']
    stored = tensors(values) + 2 * tensors({'lm_head.weight': embed})
    refuses(stored, 'lm_head.weight', '2 times', spec=TIED)
