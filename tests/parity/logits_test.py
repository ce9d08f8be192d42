"""Logits and exported folders against transformers on PyTorch, in float32.

Tolerance: 1e-4 on logits of standard deviation above 1; exact where one implementation
reads what the other wrote.
"""

import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import gguf  # noqa: E402
import jax  # noqa: E402

from epa_jax.formats.export import export_model  # noqa: E402
from epa_jax.formats.load import load_model  # noqa: E402
from epa_jax.models.hf_config import spec_from_hf  # noqa: E402
from tests.formats import folders  # noqa: E402
from tests.parity import reference  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(params=reference.CONFIGS)
def model(request):
    kind, changes = reference.CONFIGS[request.param]
    return reference.random_model(kind, changes)


def test_logits(model, tmp_path):
    model.save_pretrained(tmp_path)
    spec, params = load_model(tmp_path)
    ids = reference.tokens(spec.vocab_size)
    theirs = reference.their_logits(model, ids)
    assert theirs.std() > 1
    np.testing.assert_allclose(
        reference.our_logits(spec, params, ids), theirs, atol=1e-4, rtol=0
    )


def test_export_opens_in_transformers_with_the_same_logits(model, tmp_path):
    """And our config.json, in the spelling of 4.x, says what that of 5.x says."""
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = load_model(tmp_path / 'theirs')
    export_model(tmp_path / 'ours', spec, params, dtype='float32', shard_bytes=20_000)
    again = reference.load(tmp_path / 'ours')
    ids = reference.tokens(spec.vocab_size)
    expected = reference.their_logits(model, ids)
    np.testing.assert_array_equal(reference.their_logits(again, ids), expected)
    old = json.loads((tmp_path / 'ours' / 'config.json').read_text())
    new = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    assert 'rope_theta' in old
    assert 'rope_parameters' in new
    assert spec_from_hf(old, 'old') == spec_from_hf(new, 'new') == spec


@pytest.mark.parametrize('name', ['llama, biases', 'mistral, tied'])
def test_flax_layout(name, tmp_path):
    """Kernels written the way Flax holds a dense layer give transformers' logits."""
    model = reference.random_model(*reference.CONFIGS[name])
    model.save_pretrained(tmp_path / 'theirs')
    _, params = load_model(tmp_path / 'theirs')
    config = json.loads((tmp_path / 'theirs' / 'config.json').read_text())
    folders.write_flax(tmp_path / 'flax', config, jax.tree.map(np.asarray, params))
    spec, params = load_model(tmp_path / 'flax')
    ids = reference.tokens(spec.vocab_size)
    np.testing.assert_allclose(
        reference.our_logits(spec, params, ids),
        reference.their_logits(model, ids),
        atol=1e-4,
        rtol=0,
    )


@pytest.mark.parametrize('scaled', [False, True])
def test_gguf_of_8_bits(tmp_path, scaled):
    """A quantised file against transformers on the same dequantised weights."""
    changes = {'hidden_size': 64, 'intermediate_size': 96, 'head_dim': 16}
    if scaled:
        rope = reference.CONFIGS['llama, llama3 scaling'][1]['rope_parameters']
        changes['rope_parameters'] = rope | {'original_max_position_embeddings': 8192}
        changes['head_dim'] = 32
    model = reference.random_model('llama', changes)
    model.save_pretrained(tmp_path / 'theirs')
    spec, params = load_model(tmp_path / 'theirs')
    tensors = folders.gguf_tensors(jax.tree.map(np.asarray, params))
    q8 = gguf.GGMLQuantizationType.Q8_0
    kinds = {name: q8 for name, value in tensors.items() if value.ndim == 2}
    if scaled:
        theirs = model.model.rotary_emb.inv_freq.numpy()
        plain = 500000.0 ** -(np.arange(0, 32, 2) / 32)
        tensors['rope_freqs.weight'] = (plain / theirs).astype(np.float32)
    path = tmp_path / 'm.gguf'
    folders.write_gguf(path, folders.gguf_metadata(spec), tensors, kinds)
    ours_spec, ours = load_model(path)
    assert ours_spec == spec
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                rows = gguf.quants.quantize(p.numpy(), q8)
                p.copy_(torch.as_tensor(gguf.quants.dequantize(rows, q8)))
    ids = reference.tokens(spec.vocab_size, length=200)
    np.testing.assert_allclose(
        reference.our_logits(ours_spec, ours, ids),
        reference.their_logits(model, ids),
        atol=1e-4,
        rtol=0,
    )
