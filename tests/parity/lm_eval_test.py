"""lm-evaluation-harness's own model of transformers beside ours, on the same requests."""

import dataclasses

import pytest

torch = pytest.importorskip('torch')

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from epa_jax import sharding  # noqa: E402
from epa_jax.evals.harness import PolicyLM  # noqa: E402
from epa_jax.evals.stopping import stop_ids  # noqa: E402
from epa_jax.formats.export import export_model  # noqa: E402
from epa_jax.policy import load_policy  # noqa: E402
from epa_jax.schema import MeshConfig  # noqa: E402
from tests import tiny  # noqa: E402
from tests.data.tokenizers_in_memory import made  # noqa: E402

pytestmark = pytest.mark.parity
WINDOW = 40
SPEC = dataclasses.replace(tiny.SPEC, vocab_size=512, max_positions=WINDOW)
QUESTIONS = [
    ('hello', ' there'),
    ('once upon a time ', 'there was a girl'),
    ('a test', 's and a test'),
    ('hello', ' hello'),
    ('', 'hello there'),
    ('', '<|im_start|>hello'),
    ('the quick brown fox jumps over the lazy dog ' * 9, 'again'),
    ('what is it?\n\n', 'it is a test'),
]
TEXTS = [('hello',), ('the quick brown fox jumps over it ' * 12,), ('one two ' * 9,)]
RESPONSES = [
    ('hello', {'until': ['\n\n'], 'max_gen_toks': 12}),
    ('once upon a time', {'until': ['a', 'e'], 'max_gen_toks': 12}),
    ('once upon a time', {'until': [], 'max_gen_toks': 7, 'do_sample': False}),
    ('the quick brown fox jumps over it ' * 12, {'until': ['zz'], 'max_gen_toks': 20}),
    ('what', {'until': ['<|im_start|>'], 'max_gen_toks': 12}),
]


@pytest.fixture(scope='module', params=['chatml', 'llama 3', 'metaspace'])
def both(request, tmp_path_factory):
    """HFLM and ours, of one exported model."""
    folder = tmp_path_factory.mktemp('lm_eval') / 'model'
    export_model(folder, SPEC, tiny.params(SPEC), made(request.param), dtype='float32')
    policy = load_policy(folder, mesh=sharding.make_mesh(MeshConfig(2, 2, 2)))
    ours = PolicyLM(policy, stop_ids(policy.tokenizer, folder, []))
    # with its cache of logits, 0.4.13 takes the wrong token's logits for (a b | c) where
    # (a | b c) is asked too
    options = {'device': 'cpu', 'dtype': 'float32', 'logits_cache': False}
    return HFLM(str(folder), batch_size=1, **options), ours


def asked(kind, each):
    return [Instance(kind, {}, args, i) for i, args in enumerate(each)]


def test_continuations(both):
    theirs, mine = (lm.loglikelihood(asked('loglikelihood', QUESTIONS)) for lm in both)
    for (logp, greedy), (expected, hit) in zip(mine, theirs, strict=True):
        assert logp == pytest.approx(expected, abs=2e-3, rel=1e-4)
        assert greedy == hit
    assert both[1].cut['loglikelihood'] == 1


def test_texts_in_windows(both):
    requests = asked('loglikelihood_rolling', TEXTS)
    theirs, mine = (lm.loglikelihood_rolling(requests) for lm in both)
    assert mine == pytest.approx(theirs, abs=2e-3, rel=1e-4)


def test_responses(both):
    theirs, mine = (lm.generate_until(asked('generate_until', RESPONSES)) for lm in both)
    assert mine == theirs
    assert len(set(mine)) > 2


def test_chat_templates_and_prefixes(both):
    theirs, ours = both
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.max_length == theirs.max_length
    assert ours.max_gen_toks == theirs.max_gen_toks
    if ours.tokenizer.chat_template:
        messages = [{'role': 'user', 'content': 'hello'}]
        text = ours.apply_chat_template(messages)
        assert text == theirs.apply_chat_template(messages)
        assert ours.tok_encode(text) == theirs.tok_encode(text)
