"""Malformed safetensors are refused with a message that names file and tensor."""

import contextlib
import json

import hypothesis
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from epa_jax.formats import safetensors
from epa_jax.formats.names import FormatError


def write(folder, header, data=b'', length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path = folder / 'model.safetensors'
    path.write_bytes(size.to_bytes(8, 'little') + text + data)
    return folder


def entry(first=0, last=8, shape=(2,), dtype='F32'):
    return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [first, last]}


def values(folder):
    return {t.name: t.read() for t in safetensors.stored_tensors(folder)}


def test_reads_what_the_library_writes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        'a': rng.normal(size=(3, 5)).astype(np.float32),
        'b': rng.normal(size=(4,)).astype(np.float16),
        'c': rng.normal(size=(2, 1, 3)).astype(ml_dtypes.bfloat16),
        'd': np.array(3.5, np.float32),
    }
    save_file(tensors, tmp_path / 'model.safetensors', {'format': 'pt'})
    found = values(tmp_path)
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize('dtype', ['float32', 'float16', ml_dtypes.bfloat16])
def test_library_reads_what_is_written(tmp_path, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        'transposed': rng.normal(size=(3, 5)).astype(dtype).T,
        'strided': rng.normal(size=(8,)).astype(dtype)[::2],
    }
    safetensors.write_file(
        tmp_path / 'x',
        [(name, value.shape) for name, value in tensors.items()],
        np.dtype(dtype),
        iter(tensors.values()),
    )
    found = load_file(tmp_path / 'x')
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)


def test_writer_refuses_what_was_not_announced(tmp_path):
    announced = [('a', (2,)), ('b', (2,))]
    two = [np.zeros(2, np.float32)] * 2
    for wrong in (two[:1], [two[0], np.zeros(3, np.float32)], [two[0], np.zeros(2)]):
        with pytest.raises(ValueError):
            safetensors.write_file(tmp_path / 'x', announced, np.dtype('<f4'), wrong)


@pytest.mark.parametrize(
    ('header', 'data', 'message'),
    [
        ({'a': entry()}, b'\0' * 7, 'tensors take 8 bytes, the file has 7'),
        ({'a': entry()}, b'\0' * 9, 'tensors take 8 bytes, the file has 9'),
        ({'a': entry(0, 8), 'b': entry(4, 12)}, b'\0' * 12, 'tensor b occupies bytes 4'),
        ({'a': entry(4, 12)}, b'\0' * 12, 'tensor a occupies bytes 4 to 12'),
        ({'a': entry(0, 1 << 60, (1 << 58,))}, b'\0' * 8, 'tensors take'),
        ({'a': entry(shape=(3,))}, b'\0' * 8, 'tensor a of F32 (3,) takes 8 bytes'),
        ({'a': entry(shape=(-2, -1))}, b'\0' * 8, 'tensor a has the malformed entry'),
        ({'a': entry(shape=(2.0,))}, b'\0' * 8, 'tensor a has the malformed entry'),
        ({'a': entry() | {'x': 1}}, b'\0' * 8, 'tensor a has the malformed entry'),
        ({'a': entry(True, 8)}, b'\0' * 8, 'tensor a has the malformed entry'),
        ({'a': 3}, b'', 'tensor a has the malformed entry 3'),
        (b'{"a": 1, "a": 2}', b'', 'a is there twice'),
        (b'[]', b'', 'expected a JSON object'),
        (b'{', b'', 'not JSON'),
        (b'\xff{}', b'', 'cannot be read'),
        (b'[' * 100_000, b'', 'not JSON'),
    ],
)
def test_refuses(tmp_path, header, data, message):
    with pytest.raises(FormatError) as error:
        values(write(tmp_path, header, data))
    assert message in str(error.value)
    assert str(tmp_path / 'model.safetensors') in str(error.value)


@pytest.mark.parametrize('length', [3, 1 << 20, (1 << 64) - 1])
def test_header_larger_than_the_file(tmp_path, length):
    with pytest.raises(FormatError):
        values(write(tmp_path, b'{}', length=length))


def test_git_lfs_pointer(tmp_path):
    text = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n'
    (tmp_path / 'model.safetensors').write_bytes(text)
    with pytest.raises(FormatError, match='Git LFS pointer'):
        values(tmp_path)
    (tmp_path / 'model.safetensors').write_bytes(b'')
    with pytest.raises(FormatError, match='0 bytes'):
        values(tmp_path)


@pytest.mark.parametrize('dtype', ['F64', 'I32', 'F8_E4M3', 'nonsense'])
def test_dtypes_that_are_not_weights(tmp_path, dtype):
    with pytest.raises(FormatError, match=f'tensor a has dtype {dtype}; expected one of'):
        values(write(tmp_path, {'a': entry(dtype=dtype)}, b'\0' * 8))


@hypothesis.given(st.data())
def test_damage_raises_nothing_else(tmp_path_factory, data):
    """Any one byte changed, or the file cut anywhere: read, or refused cleanly."""
    folder = tmp_path_factory.mktemp('m')
    path = folder / 'model.safetensors'
    save_file({'a': np.ones((2, 3), np.float32), 'b': np.ones(4, np.float16)}, path)
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        path.write_bytes(good[:place])
        with pytest.raises(FormatError):
            values(folder)
    else:
        path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
        with contextlib.suppress(FormatError):
            values(folder)
