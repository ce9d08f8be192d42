"""GGUF headers and architectures: what llama.cpp writes is read, the rest is refused."""

import contextlib
import dataclasses
import struct

import gguf
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from epa_jax.formats.gguf_file import open_gguf
from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.spec import RopeScaling, SpecError
from tests.formats import folders

SPEC = spec_from_hf(folders.CONFIG, 'test')
TYPES = gguf.GGMLQuantizationType


def header(*parts, version=3, tensors=0, metadata=0):
    return b'GGUF' + struct.pack('<IQQ', version, tensors, metadata) + b''.join(parts)


def string(text):
    return struct.pack('<Q', len(text)) + text


def info(name=b'a', shape=(8,), kind=0, offset=0):
    axes = struct.pack(f'<I{len(shape)}Q', len(shape), *shape)
    return string(name) + axes + struct.pack('<IQ', kind, offset)


def test_reads_what_the_gguf_package_writes(tmp_path):
    metadata = {
        'a.flag': True,
        'a.count': 7,
        'a.real': 0.5,
        'a.text': 'naïve 🙂',
        'a.ints': [1, 2, 3],
        'a.reals': [0.5, 1.5],
        'a.flags': [True, False],
        'a.texts': ['x', '', 'yy'],
    }
    rng = np.random.default_rng(0)
    tensors = {'one': rng.normal(size=(3,)), 'two': rng.normal(size=(5, 2))}
    tensors = {name: v.astype(np.float32) for name, v in tensors.items()}
    file = open_gguf(folders.write_gguf(tmp_path / 'm.gguf', metadata, tensors))
    assert file.metadata == metadata | {'general.architecture': 'llama'}
    assert [t.name for t in file.tensors] == ['one', 'two']
    for tensor in file.tensors:
        np.testing.assert_array_equal(tensor.read(), tensors[tensor.name])


@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'BF16', 'F16'])
def test_dequantises_as_the_gguf_package_does(tmp_path, kind):
    kind = TYPES[kind]
    value = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    path = folders.write_gguf(tmp_path / 'm.gguf', {}, {'a': value}, {'a': kind})
    (tensor,) = open_gguf(path).tensors
    assert tensor.shape == (6, 64)
    expected = gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
    np.testing.assert_array_equal(tensor.read().astype(np.float32), expected)
    assert 0 < np.abs(expected - value).max() < 0.5


def test_type_that_cannot_be_dequantised(tmp_path):
    path = tmp_path / 'm.gguf'
    path.write_bytes(header(info(kind=TYPES.I32), tensors=1) + b'\0' * 200)
    (tensor,) = open_gguf(path).tensors
    with pytest.raises(FormatError, match='tensor a has type I32'):
        tensor.read()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'cut short'),
        (b'GGML' + b'\0' * 40, 'does not begin with GGUF'),
        (header(version=1), 'GGUF version 1'),
        (header(version=1 << 24), 'expected 2 or 3, little-endian'),
        (header(metadata=1 << 60), 'cut short'),
        (header(tensors=1 << 60), 'cut short'),
        (header(struct.pack('<Q', 1 << 60), metadata=1), 'cut short'),
        (header(string(b'\xff'), metadata=1), 'not UTF-8'),
        (header(string(b'k'), struct.pack('<I', 13), metadata=1), 'value type 13'),
        (
            header(string(b'k'), struct.pack('<IIQ', 9, 8, 1 << 60), metadata=1),
            'does not fit the file',
        ),
        (header(string(b'k'), struct.pack('<IIQ', 9, 4, 1 << 62), metadata=1), 'cut short'),
        (header(string(b'k'), struct.pack('<IIQ', 9, 9, 1), metadata=1), 'value type 9'),
        (header(2 * (string(b'k') + struct.pack('<IB', 7, 1)), metadata=2), 'k is there'),
        (
            header(string(b'general.alignment'), struct.pack('<II', 4, 3), metadata=1),
            'general.alignment=3',
        ),
        (header(info(shape=(1,) * 5), tensors=1), 'tensor a has 5 axes'),
        (header(info(shape=()), tensors=1), 'tensor a ()'),
        (header(info(kind=99), tensors=1), 'tensor a has the unknown type 99'),
        (header(info(kind=8, shape=(33,)), tensors=1), 'blocks of 32'),
        (header(info(), tensors=1), 'tensor a is said to occupy bytes 0 to 32'),
        (header(info(shape=(1 << 62, 1 << 62)), tensors=1), 'tensor a is said to'),
        (header(info(offset=1 << 50), tensors=1) + b'\0' * 200, 'tensor a is said to'),
        (header(info(offset=4), tensors=1) + b'\0' * 200, 'tensor a is said to'),
        (header(info(), info(b'b'), tensors=2) + b'\0' * 200, 'is said to'),
    ],
)
def test_refuses(tmp_path, content, message):
    path = tmp_path / 'm.gguf'
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        open_gguf(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@hypothesis.given(st.data())
def test_damage_raises_nothing_else(tmp_path_factory, data):
    """Any one byte changed, or the file cut anywhere: read, or refused cleanly."""
    path = tmp_path_factory.mktemp('m') / 'm.gguf'
    tensors = {'a': np.ones((2, 32), np.float32), 'b': np.ones(4, np.float32)}
    folders.write_gguf(path, {'k': 'v', 'l': ['x', 'y']}, tensors, {'a': TYPES.Q8_0})
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        path.write_bytes(good[:place])
    else:
        path.write_bytes(good[:place] + bytes([byte]) + good[place + 1 :])
    with contextlib.suppress(FormatError):
        for tensor in open_gguf(path).tensors:
            tensor.read()


def write(path, changes=None, without=(), extra=None, spec=SPEC, architecture='llama'):
    metadata = folders.gguf_metadata(spec) | (changes or {})
    metadata = {k: v for k, v in metadata.items() if k not in without}
    tensors = folders.gguf_tensors(folders.random_params(spec)) | (extra or {})
    return folders.write_gguf(path, metadata, tensors, architecture=architecture)


def test_optional_metadata(tmp_path):
    """Keys that old files do not have follow from others; harmless keys are known."""
    spec = dataclasses.replace(SPEC, head_dim=4)
    without = [
        'llama.vocab_size',
        'llama.attention.key_length',
        'llama.attention.value_length',
        'llama.rope.dimension_count',
        'llama.rope.freq_base',
    ]
    harmless = {
        'tokenizer.ggml.tokens': [str(i) for i in range(48)],
        'llama.expert_count': 0,
        'llama.rope.scaling.type': 'none',
        'llama.tensor_data_layout': 'Meta AI original pth',
        'general.name': 'x',
        'somebody.note': 'y',
    }
    path = write(tmp_path / 'm.gguf', harmless, without, spec=spec)
    assert load_spec(path) == spec


def test_sliding_window_makes_it_mistral(tmp_path):
    plain = dataclasses.replace(SPEC, attention_bias=False, mlp_bias=False)
    path = write(tmp_path / 'm.gguf', {'llama.attention.sliding_window': 5}, spec=plain)
    expected = dataclasses.replace(plain, sliding_window=5, model_type='mistral')
    assert load_spec(path) == expected


def llama3_factors(factor, head_dim, theta, positions=8192):
    """As llama.cpp's conversion script computes rope_freqs.weight, in float64."""
    out = []
    for i in range(0, head_dim, 2):
        frequency = theta ** -(i / head_dim)
        wavelength = 2 * np.pi / frequency
        if wavelength < positions / 4:
            out.append(1.0)
        elif wavelength > positions:
            out.append(factor)
        else:
            smooth = (positions / wavelength - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.float32(out)


def test_llama3_scaling_is_recognised(tmp_path):
    spec = dataclasses.replace(SPEC, head_dim=64, rope_theta=500000.0)
    factors = llama3_factors(8.0, 64, 500000.0)
    assert len(set(factors.tolist())) > 4  # all three regions are met
    path = write(tmp_path / 'm.gguf', extra={'rope_freqs.weight': factors}, spec=spec)
    expected = dataclasses.replace(spec, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192))
    assert load_model(path)[0] == expected
    for wrong in (factors * 1.01, factors[:-1], np.linspace(1, 8, 32, dtype=np.float32)):
        path = write(tmp_path / 'x.gguf', extra={'rope_freqs.weight': wrong}, spec=spec)
        with pytest.raises(FormatError, match=r'rope_freqs\.weight is not Llama-3'):
            load_spec(path)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'llama.expert_count': 8}, 'llama.expert_count=8 is not implemented'),
        ({'llama.rope.scaling.type': 'yarn'}, "llama.rope.scaling.type='yarn'"),
        ({'llama.rope.scaling.factor': 4.0}, 'llama.rope.scaling.factor=4.0'),
        ({'llama.attention.causal': False}, 'llama.attention.causal=False'),
        ({'llama.surprise': 1}, 'llama.surprise=1 is not implemented'),
        ({'llama.block_count': 0}, 'llama.block_count=0: expected a positive int'),
        ({'llama.block_count': 'x'}, "llama.block_count='x': expected a positive int"),
        ({'llama.feed_forward_length': [24, 24]}, 'llama.feed_forward_length=[24, 24]'),
        ({'llama.rope.dimension_count': 4}, 'of which 4 rotate'),
        ({'llama.attention.value_length': 4}, 'one width for keys, values'),
        ({'general.type': 'adapter'}, "general.type='adapter'"),
        ({'split.count': 2}, 'one of 2 parts; join them'),
    ],
)
def test_metadata_that_is_not_implemented(tmp_path, changes, message):
    with pytest.raises(FormatError) as error:
        load_spec(write(tmp_path / 'm.gguf', changes))
    assert message in str(error.value)


def test_metadata_that_is_missing_or_contradictory(tmp_path):
    path = tmp_path / 'm.gguf'
    for key in ('llama.block_count', 'llama.attention.layer_norm_rms_epsilon'):
        with pytest.raises(FormatError, match=f'{key} is missing'):
            load_spec(write(path, without=[key]))
    with pytest.raises(FormatError, match=r'tokenizer\.ggml\.tokens are missing'):
        load_spec(write(path, without=['llama.vocab_size']))
    with pytest.raises(FormatError, match=r"general\.architecture='qwen2'"):
        load_spec(write(path, architecture='qwen2'))
    with pytest.raises(SpecError, match='cannot share 3'):
        load_spec(write(path, {'llama.attention.head_count_kv': 3}))


def test_tensor_of_another_architecture(tmp_path):
    extra = {'blk.0.attn_q_norm.weight': np.ones(8, np.float32)}
    path = write(tmp_path / 'm.gguf', extra=extra)
    with pytest.raises(FormatError, match=r'unexpected tensor blk\.0\.attn_q_norm\.weight'):
        load_model(path)
