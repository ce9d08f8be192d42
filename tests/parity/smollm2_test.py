"""The real SmolLM2-135M-Instruct (GGUF, 4 bits): two readers, two implementations."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('accelerate')  # transformers' GGUF reader wants it

import transformers  # noqa: E402

from epa_jax.formats.export import export_model  # noqa: E402
from epa_jax.formats.load import load_model  # noqa: E402
from epa_jax.formats.tokenizer import load_tokenizer  # noqa: E402
from tests.parity import reference  # noqa: E402

pytestmark = pytest.mark.parity

TEXTS = (
    'The capital of France is Paris.',
    "Digits 123 4567, it's naïve;  two  spaces\n\n\ttabs 你好 🙂",
    '<|im_start|>user\nHi<|im_end|>\n<|endoftext|>',
    ' leading and trailing ',
)


@pytest.fixture(scope='module')
def ours(smollm2):
    return load_model(smollm2)


def test_logits_and_tokens(smollm2, ours):
    spec, params = ours
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, local_files_only=True
    )
    tokenizer = load_tokenizer(smollm2)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, local_files_only=True
    )
    for text in TEXTS:
        assert tokenizer(text).input_ids == their_tokenizer(text).input_ids
    ids = np.array([tokenizer(TEXTS[1]).input_ids])
    expected = reference.their_logits(theirs, ids)
    np.testing.assert_allclose(
        reference.our_logits(spec, params, ids),
        expected,
        atol=3e-4,
        rtol=0,  # 30 layers, logits up to 30
    )


def test_exported_folder_answers_in_transformers(smollm2, ours, tmp_path):
    spec, params = ours
    tokenizer = load_tokenizer(smollm2)
    export_model(tmp_path / 'm', spec, params, tokenizer, dtype='float32')
    model = reference.load(tmp_path / 'm')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'm')
    chat = [{'role': 'user', 'content': 'What is the capital of France?'}]
    options = {'add_generation_prompt': True, 'return_dict': False}
    ids = theirs.apply_chat_template(chat, **options)
    assert ids == tokenizer.apply_chat_template(chat, **options)
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    assert theirs.decode(out[0, len(ids) :]) == 'The capital of France is Paris.<|im_end|>'
    again, reloaded = load_model(tmp_path / 'm')
    assert again == spec
    jax.tree.map(np.testing.assert_array_equal, reloaded, params)
