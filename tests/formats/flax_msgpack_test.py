"""flax_model.msgpack: what Flax writes is read, anything else is refused."""

import contextlib
import json

import flax.serialization
import flax.traverse_util
import hypothesis
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import strategies as st

from epa_jax.formats import flax_msgpack
from epa_jax.formats.load import load_model
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')


def values(folder):
    return {t.name: t.read() for t in flax_msgpack.stored_tensors(folder)}


def write(folder, content):
    data = content
    if not isinstance(content, bytes):
        data = flax.serialization.msgpack_serialize(content)
    (folder / 'flax_model.msgpack').write_bytes(data)
    return folder


def array(shape=(2,), dtype='float32', data=b'\0' * 8, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def test_reads_every_size_of_value(tmp_path):
    """Lengths in the first byte, and in 1, 2 and 4 bytes after it."""
    rng = np.random.default_rng(0)
    tree = {'wide': {str(i): np.float32([[i]]) for i in range(70_000)}}
    tree |= {f'w{i}': {'x' * i: np.float32([i])} for i in range(1, 40)}
    tree['y' * 300] = {'a': rng.normal(size=(3, 50)).astype(np.float32)}
    tree['z' * 70_000] = {'a': rng.normal(size=(200, 300)).astype(np.float16)}
    tree['~'] = {'a': rng.normal(size=(1, 2, 3, 4)).astype(ml_dtypes.bfloat16)}
    found = flax_msgpack.stored_tensors(write(tmp_path, tree))
    expected = flax.traverse_util.flatten_dict(tree, sep='/')
    assert {t.name for t in found} == set(expected)
    for tensor in found[:70_000:500] + found[70_000:]:
        value = tensor.read()
        assert value.dtype == expected[tensor.name].dtype
        np.testing.assert_array_equal(value, expected[tensor.name])


def test_arrays_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, 'MAX_CHUNK_SIZE', 100)
    params = folders.random_params(SPEC)
    folder = folders.write_flax(tmp_path / 'm', folders.CONFIG, params)
    assert b'__msgpack_chunked_array__' in (folder / 'flax_model.msgpack').read_bytes()
    jax.tree.map(np.testing.assert_array_equal, load_model(folder)[1], params)


def test_shards(tmp_path):
    params = folders.random_params(SPEC)
    flat = flax.traverse_util.flatten_dict(folders.flax_tree(params), sep='/')
    weight_map = {}
    for i in range(3):
        file = f'flax_model-{i + 1:05}-of-00003.msgpack'
        part = {name: flat[name] for name in sorted(flat)[i::3]}
        tree = flax.traverse_util.unflatten_dict(part, sep='/')
        (tmp_path / file).write_bytes(flax.serialization.to_bytes(tree))
        weight_map |= dict.fromkeys(part, file)
    index = {'metadata': {'total_size': 1}, 'weight_map': weight_map}
    (tmp_path / 'flax_model.msgpack.index.json').write_text(json.dumps(index))
    (tmp_path / 'config.json').write_text(json.dumps(folders.CONFIG))
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path)[1], params)


def chunked(**changes):
    node = {
        '__msgpack_chunked_array__': True,
        'shape': {'0': 4},
        'chunks': {'0': array(), '1': array()},
    }
    return msgpack.packb({'a': node | changes})


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (msgpack.packb({'a': array(code=2)}), 'extension type 2'),
        (msgpack.packb({'a': array(code=3)}), 'extension type 3'),
        (msgpack.packb({'a': array(code=7)}), 'extension type 7'),
        (msgpack.packb({'a': array(dtype='object')}), 'a has dtype object'),
        (msgpack.packb({'a': array(dtype='complex64')}), 'a has dtype complex64'),
        (msgpack.packb({'a': array(dtype='float64')}), 'a has dtype float64'),
        (msgpack.packb({'a': array((3,))}), 'tensor a (3,) takes 12 bytes, but has 8'),
        (msgpack.packb({'a': array((1 << 40, 1 << 40))}), 'but has 8'),
        (msgpack.packb({'a': msgpack.ExtType(1, b'\x93' + 7 * b'\x01')}), 'found int'),
        (msgpack.packb({'a': msgpack.ExtType(1, b'\xc0' * 9)}), 'begins with 0xc0'),
        (msgpack.packb({'a': None}), 'a value begins with 0xc0'),
        (msgpack.packb({'a': 1.5}), 'a value begins with 0xcb'),
        (msgpack.packb({'a': 'text'}), 'found string'),
        (msgpack.packb({'a': [1]}), 'found array'),
        (msgpack.packb({'a': 1}), 'a is 1; expected an array'),
        (msgpack.packb({'a': {'b': True}}), 'a/b is True; expected an array'),
        (msgpack.packb({1: array()}), 'found int, expected string'),
        (msgpack.packb({'a/b': array()}), "the name 'a/b'"),
        (b'\x82' + 2 * (msgpack.packb('a') + msgpack.packb(array())), 'there twice'),
        (b'\x81\xa1\xff' + msgpack.packb(array()), 'not UTF-8'),
        (msgpack.packb([1]), 'found array, expected map'),
        (msgpack.packb({}) + b'\x00', 'bytes are left'),
        (b'\x81\xa1a' * 40 + b'\x80', 'nested more than 32 deep'),
        (b'\xdf\xff\xff\xff\xff', 'ends too early'),
        (b'\x81\xa1a\xc9\xff\xff\xff\xff\x01', 'ends too early'),
        (b'\x81\xdb\xff\xff\xff\xff', 'ends too early'),
        (b'', 'cannot be read'),
        (chunked(shape={'0': 5}), 'tensor a (5,) takes 20 bytes, but has 16'),
        (chunked(shape={'1': 4}), 'malformed shape or chunks'),
        (chunked(shape={'0': True}), 'malformed shape or chunks'),
        (chunked(chunks={'0': array(), '2': array()}), 'malformed shape or chunks'),
        (chunked(chunks={'0': 1}), 'malformed shape or chunks'),
        (chunked(chunks={}), 'a has dtype none'),
        (chunked(chunks=3), 'needs shape and chunks'),
        (chunked(other=3), 'needs shape and chunks'),
        (
            msgpack.packb({'__msgpack_chunked_array__': True, 'shape': {}, 'chunks': {}}),
            'the file is a single array',
        ),
    ],
)
def test_refuses(tmp_path, content, message):
    with pytest.raises(FormatError) as error:
        values(write(tmp_path, content))
    assert message in str(error.value)
    assert str(tmp_path / 'flax_model.msgpack') in str(error.value)


@hypothesis.given(st.data())
def test_damage_raises_nothing_else(tmp_path_factory, data):
    """Any one byte changed, or the file cut anywhere: read, or refused cleanly."""
    folder = tmp_path_factory.mktemp('m')
    tree = {'a': {'b': np.ones((2, 3), np.float32)}, 'c': np.ones(4, np.float16)}
    good = flax.serialization.msgpack_serialize(tree)
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        with pytest.raises(FormatError):
            values(write(folder, good[:place]))
    else:
        with contextlib.suppress(FormatError):
            values(write(folder, good[:place] + bytes([byte]) + good[place + 1 :]))
