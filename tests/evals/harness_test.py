"""What the harness is told, against single sequences through the whole softmax."""

import dataclasses
import random

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.evals.harness import PolicyLM
from epa_jax.evals.scoring import ScoreError
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.policy import Policy
from epa_jax.schema import MeshConfig
from tests import tiny
from tests.data.tokenizers_in_memory import CHATML, made

WINDOW = 24
SPEC = dataclasses.replace(tiny.SPEC, vocab_size=512, max_positions=WINDOW)
PARAMS = tiny.params(SPEC)
PAIRS = [
    ('hello', ' there'),
    ('hello ', 'there'),  # the space is the continuation's
    ('a test', 's and more'),
    ('hello', ' there'),
    ('hello', ' hello hello'),
    ('', 'hello there'),
    ('', '<|im_start|>hello'),
    ('the quick brown fox ' * 9, 'jumps over'),
]


def model(name='chatml', **kwargs):
    """A model of tokenizer `name`, on all devices."""
    tokenizer = made(name)
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    where = sharding.param_shardings(mesh, PARAMS, transformer.logical_axes(SPEC))
    params = jax.device_put(PARAMS, where)
    compute = Compute(mesh=mesh)
    ends = [tokenizer.eos_token_id]
    return PolicyLM(Policy(SPEC, params, tokenizer, compute, mesh), ends, **kwargs)


def requests(kind, each):
    return [Instance(kind, {}, tuple(args), i) for i, args in enumerate(each)]


def by_hand(given, scored):
    """Log-prob of a continuation, and whether it is greedy."""
    rows = np.asarray(tiny.sequence_distributions(PARAMS, SPEC, given, scored))
    logp = rows[np.arange(len(scored)), scored].sum()
    return float(logp), rows.argmax(-1).tolist() == list(scored)


def tokens_of(tokenizer, context, continuation):
    """The harness's rule: a context's tokens end where they do without what follows."""
    bare = context.rstrip(' ')
    whole = tokenizer(context + continuation)['input_ids']
    return len(tokenizer(bare)['input_ids']), whole


@pytest.mark.parametrize('name', ['chatml', 'metaspace'])
def test_continuations_in_any_order(name):
    lm = model(name)
    order = list(range(len(PAIRS)))
    random.Random(1).shuffle(order)
    found = dict(
        zip(
            order,
            lm.loglikelihood(requests('loglikelihood', [PAIRS[i] for i in order])),
            strict=True,
        )
    )
    prefix = lm.tokenizer.bos_token_id
    if prefix is None:
        prefix = lm.tokenizer.eos_token_id
    for i, (context, continuation) in enumerate(PAIRS):
        size, ids = tokens_of(lm.tokenizer, context, continuation)
        if not context:
            ids = lm.tokenizer(continuation, add_special_tokens=False)['input_ids']
            size, ids = 1, ids if ids[0] == prefix else [prefix, *ids]
        kept = ids[-(WINDOW + 1) :]
        scored = len(ids) - size
        logp, greedy = by_hand(kept[:-scored], kept[-scored:])
        assert found[i][0] == pytest.approx(logp, abs=1e-4), PAIRS[i]
        assert found[i][1] is greedy
    assert lm.cut == {'loglikelihood': 1}


def test_what_greedy_decoding_gives_is_called_greedy():
    lm = model()
    context = lm.tokenizer.encode('once upon')
    first = int(tiny.sequence_distributions(PARAMS, SPEC, context, [0])[0].argmax())
    pairs = [(('', ''), context, [first]), (('', ''), context, [first + 1])]
    assert [hit for _, hit in lm._loglikelihood_tokens(pairs)] == [True, False]


@pytest.mark.parametrize(
    ('pair', 'message'),
    [
        (('hello', ''), "empty continuation, after 'hello'"),
        (('hello', ' hello' * 40), 'at most 24 to score'),
        (('  ', 'hello'), '0 tokens of context'),
    ],
)
def test_what_cannot_be_scored_is_named(pair, message):
    with pytest.raises(ScoreError, match=message):
        model().loglikelihood(requests('loglikelihood', [pair]))


def test_long_texts_go_in_windows():
    # each token once, behind as many as fit: the last window overlaps the one before
    lm = model('metaspace')
    texts = ['hello', 'the quick brown fox jumps ' * 12, '', 'one two ' * 20]
    found = lm.loglikelihood_rolling(
        requests('loglikelihood_rolling', [(t,) for t in texts])
    )
    for text, logp in zip(texts, found, strict=True):
        ids = lm.tokenizer(text)['input_ids']
        whole = [lm.tokenizer.bos_token_id, *ids]
        total = 0.0
        for start in range(0, len(ids), WINDOW):
            end = min(start + WINDOW, len(ids))
            first = max(end - WINDOW, 0)  # of `whole`: one place before `ids`
            total += by_hand(whole[first : start + 1], ids[start:end])[0]
        assert logp == pytest.approx(total, abs=1e-3)
    assert len(lm.tokenizer(texts[1])['input_ids']) > 2 * WINDOW


def greedy_text(lm, context, size, stop_ids):
    """Greedy decoding, one whole forward pass a token."""
    ids, out = lm.tok_encode(context)[-(WINDOW - size) :], []
    while len(out) < size and not set(out) & set(stop_ids):
        rows = tiny.sequence_distributions(PARAMS, SPEC, ids + out, [0])
        out.append(int(rows[0].argmax()))
    return lm.tokenizer.decode(out, skip_special_tokens=True)


def test_responses_are_greedy_and_end_where_they_should():
    lm = model()
    contexts = ['hello', 'once upon a time ' * 9, 'what', 'hello']
    options = [{'until': [], 'max_gen_toks': 6}] * 3 + [{'max_new_tokens': 3}]
    each = list(zip(contexts, options, strict=True))
    found = lm.generate_until(requests('generate_until', each))
    for text, context, option in zip(found, contexts, options, strict=True):
        size = next(iter(v for k, v in option.items() if k.startswith('max')))
        assert text == greedy_text(lm, context, size, [lm.eot_token_id])
    assert lm.cut['generate_until'] == 1
    stop = found[0][2:4]
    assert stop
    until = {'until': stop, 'max_gen_toks': 6}
    (cut,) = lm.generate_until(requests('generate_until', [('hello', until)]))
    assert cut == found[0].split(stop)[0] != found[0]
    assert until == {'until': stop, 'max_gen_toks': 6}  # the harness's key of its cache


def test_sampled_copies_differ_and_repeat():
    options = {'do_sample': True, 'temperature': 2.0, 'top_k': 40, 'max_gen_toks': 8}
    each = requests('generate_until', [('hello', options)] * 3 + [('what', options)])
    first = model().generate_until(each)
    again = model(sample_rows=1, rows=2).generate_until(each)
    other = model(seed=1).generate_until(each)
    assert first == again != other
    assert len(set(first)) == 4
    cold = options | {'temperature': 0.0}
    greedy = {'max_gen_toks': 8, 'do_sample': False, 'temperature': 0.9}
    found = model().generate_until(
        requests('generate_until', [('hello', cold), ('hello', greedy)])
    )
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'num_beams': 4}, 'generation_kwargs num_beams: not supported'),
        ({'max_gen_toks': WINDOW}, 'leaves no room for a context'),
        ({'max_gen_toks': 4, 'temperature': 1.0, 'top_p': 1.5}, 'top_p=1.5'),
    ],
)
def test_options_that_cannot_be_followed_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        model().generate_until(requests('generate_until', [('hello', options)]))


def test_the_chat_template_begins_a_text_once():
    lm = model('llama 3')
    messages = [{'role': 'user', 'content': 'hello'}]
    text = lm.apply_chat_template(messages)
    assert text == '<s><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n'
    assert lm.tok_encode(text).count(lm.tokenizer.bos_token_id) == 1
    assert lm.tok_encode('hello')[0] == lm.tokenizer.bos_token_id
    begun = [*messages, {'role': 'assistant', 'content': 'I am'}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith('I am')
    assert lm.chat_template(True) == '{{ bos_token }}' + CHATML
    assert lm.tokenizer_name != model('chatml').tokenizer_name
    assert lm.tokenizer_name == model('llama 3').tokenizer_name


@pytest.mark.parametrize(
    ('name', 'message'),
    [('metaspace', 'no chat template'), ('instruction', 'refuses messages of system')],
)
def test_messages_that_cannot_be_rendered_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        model(name).apply_chat_template([{'role': 'system', 'content': 'Be brief.'}])


def test_the_harness_finds_its_cached_answers(tmp_path, monkeypatch):
    asked = {
        'loglikelihood': [('hello', ' there'), ('what', ' is it')],
        'loglikelihood_rolling': [('hello there',)],
        'generate_until': [('hello', {'until': ['\n'], 'max_gen_toks': 4})],
    }

    def answers(lm):
        cached = CachingLM(lm, str(tmp_path / 'cache.db'))
        try:
            return [getattr(cached, k)(requests(k, each)) for k, each in asked.items()]
        finally:
            cached.dbdict.close()

    first = answers(model())
    silent = model()
    monkeypatch.setattr(silent, '_score', None)
    monkeypatch.setattr(silent, '_respond', None)
    assert answers(silent) == first
