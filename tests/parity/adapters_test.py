"""Adapters against PEFT: either opens what the other wrote, with the same logits."""

import json

import pytest

torch = pytest.importorskip('torch')
peft = pytest.importorskip('peft')

import jax  # noqa: E402
import numpy as np  # noqa: E402

from epa_jax.formats.export import export_adapter  # noqa: E402
from epa_jax.formats.load import load_model  # noqa: E402
from epa_jax.models import lora as lora_lib  # noqa: E402
from epa_jax.models.lora import Lora  # noqa: E402
from tests.models.lora_test import adapters  # noqa: E402
from tests.parity import reference  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # PEFT looks at every attribute of a model, this deprecated one of transformers too
    pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`:FutureWarning'),
]

NAMES = ('llama, biases', 'mistral, window shorter than the sequence')
KINDS = {
    'all, rank 3': Lora(3, 5.0),
    'two, rank stabilized': Lora(4, 2.0, ('q', 'down'), rank_stabilized=True),
}


@pytest.fixture(params=NAMES)
def model(request, tmp_path):
    kind, changes = reference.CONFIGS[request.param]
    model = reference.random_model(kind, changes)
    model.save_pretrained(tmp_path / 'base')
    return model


@pytest.mark.parametrize('lora', KINDS.values(), ids=KINDS)
def test_peft_opens_our_adapters(model, tmp_path, lora):
    spec, params = load_model(tmp_path / 'base')
    found = adapters(spec, lora)
    export_adapter(tmp_path / 'out', spec, found, lora, str(tmp_path / 'base'))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    ids = reference.tokens(spec.vocab_size)
    attached = lora_lib.attach(params, found, lora.scale)
    ours = reference.our_logits(spec, attached, ids)
    assert np.abs(ours - reference.our_logits(spec, params, ids)).max() > 1
    expected = reference.their_logits(theirs, ids)
    np.testing.assert_allclose(ours, expected, atol=5e-4, rtol=1e-4)
    merged = theirs.merge_and_unload()
    merged.save_pretrained(tmp_path / 'merged')
    ours = lora_lib.merge(attached)
    _, expected = load_model(tmp_path / 'merged')
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


@pytest.mark.parametrize('lora', KINDS.values(), ids=KINDS)
def test_we_open_the_adapters_of_peft(model, tmp_path, lora):
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=[f'{name}_proj' for name in lora.matrices],
        use_rslora=lora.rank_stabilized,
        task_type='CAUSAL_LM',
    )
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if 'lora_' in name:
                p.copy_(0.3 * torch.randn_like(p))
    adapted.save_pretrained(tmp_path / 'adapter')
    path = tmp_path / 'adapter/adapter_config.json'
    config = json.loads(path.read_text()) | {'base_model_name_or_path': '../base'}
    path.write_text(json.dumps(config))
    spec, params = load_model(tmp_path / 'adapter')
    ids = reference.tokens(spec.vocab_size)
    np.testing.assert_allclose(
        reference.our_logits(spec, params, ids),
        reference.their_logits(adapted, ids),
        atol=5e-4,
        rtol=1e-4,
    )
