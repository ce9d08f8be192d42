"""The tables of names are closed, and layouts invert."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from epa_jax.formats.names import (
    FLAX,
    GGUF,
    HUGGING_FACE,
    Layout,
    Slot,
    from_leaf,
    stored_shape,
    to_leaf,
)
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')
PLAIN = dataclasses.replace(SPEC, attention_bias=False, mlp_bias=False)


@pytest.mark.parametrize('spec', [SPEC, PLAIN])
@pytest.mark.parametrize('tied', [False, True])
def test_expects_the_names_of_the_format(spec, tied):
    spec = dataclasses.replace(spec, tie_embeddings=tied)
    params = folders.random_params(spec)
    hf, gguf = folders.hf_tensors(params), folders.gguf_tensors(params)
    assert set(HUGGING_FACE.expected(spec)) == set(hf)
    assert set(GGUF.expected(spec)) == set(gguf)
    kernels = {
        n.replace('embed_tokens.weight', 'embed_tokens.embedding')
        if 'norm' in n or 'embed' in n
        else n.replace('.weight', '.kernel')
        for n in hf
    }
    assert set(FLAX.expected(spec)) == {n.replace('.', '/') for n in kernels}


def test_every_parameter_is_named_once_in_every_format():
    params = folders.random_params(SPEC)
    for names in (HUGGING_FACE, FLAX, GGUF):
        slots = list(names.expected(SPEC).values())
        assert len({(s.path, s.layer) for s in slots}) == len(slots)
        assert {s.path[-1] for s in slots} == {*params, *params['layers']} - {'layers'}


def test_order_is_that_of_the_model():
    names = list(HUGGING_FACE.expected(SPEC))
    assert names[0] == 'model.embed_tokens.weight'
    assert names[-2:] == ['model.norm.weight', 'lm_head.weight']
    layers = [name.split('.')[2] for name in names[1:-2]]
    assert layers == sorted(layers)


@hypothesis.given(
    st.sampled_from(['q', 'k', 'v', 'o', 'gate', 'down', 'q_bias', 'norm']),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_written_layouts_invert(leaf, a, b, c):
    shape = {'gate': (a, b), 'down': (a, b), 'q_bias': (a, b), 'norm': (a,)}
    shape = shape.get(leaf, (a, b, c))
    layout = {'q_bias': Layout.FLAT, 'norm': Layout.SAME}.get(leaf, Layout.OUT_IN)
    slot = Slot(('layers', leaf), 0, layout)
    value = np.arange(np.prod(shape)).reshape(shape)
    stored = from_leaf(value, slot)
    assert stored.shape == stored_shape(slot, shape)
    np.testing.assert_array_equal(to_leaf(stored, slot, shape), value)


@pytest.mark.parametrize('rows', [True, False])
def test_rotary_pairs_are_undone(rows):
    """Row h * H + 2 i + s of llama.cpp is coordinate i + s H / 2 of head h."""
    heads, width, inputs = 3, 8, 5
    stored = np.arange(heads * width * inputs).reshape(heads * width, inputs)
    shape = (inputs, heads, width)
    slot = Slot(('layers', 'q'), 0, Layout.OUT_IN_PAIRED)
    if not rows:
        stored, shape = stored[:, 0], (heads, width)
        slot = Slot(('layers', 'q_bias'), 0, Layout.FLAT_PAIRED)
    leaf = to_leaf(stored, slot, shape)
    for head in range(heads):
        for i in range(width // 2):
            for s in range(2):
                row = stored[head * width + 2 * i + s]
                np.testing.assert_array_equal(leaf[..., head, i + s * width // 2], row)


@pytest.mark.parametrize('layout', [Layout.IN_OUT, Layout.TRANSPOSED, Layout.OUT_IN_PAIRED])
def test_layouts_that_are_only_read(layout):
    with pytest.raises(ValueError, match='is not written'):
        from_leaf(np.zeros((2, 2)), Slot(('layers', 'gate'), 0, layout))
