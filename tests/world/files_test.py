"""The world's files: tokenizer, model folder, split and labels."""

import collections
import json

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from epa_jax.data.tokenise import tokenise
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.transformer import init_params
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Role
from epa_jax.world import files, language

WORDS = language.words()
PROMPTS = language.all_prompts()
SPEC = files.model_spec(d_model=32, n_layers=2)


@pytest.fixture(scope='module')
def tokenizer():
    return files.make_tokenizer()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('world') / 'model'
    files.write_untrained_model(folder, SPEC, seed=3)
    return folder


def test_every_word_is_one_token_and_comes_back(tokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert ids == [[i] for i in range(4, 4 + len(WORDS))]
    assert [tokenizer.decode(i) for i in ids] == WORDS
    assert len(tokenizer) == SPEC.vocab_size == 4 + len(WORDS)


@hypothesis.given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=24))
def test_any_text_comes_back(said):
    tokenizer, text = files.make_tokenizer(), ' '.join(said)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(said)
    assert (
        tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    )


def test_prompts_begin_with_bos_and_do_not_end(tokenizer):
    ids = tokenizer(PROMPTS[0].text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids[1:]) == PROMPTS[0].text


def test_training_reads_the_tokens_that_sampling_writes(tokenizer):
    prompt, texts = PROMPTS[0], ('gladly , roses are muddy .', 'ugh')
    roles = (Role.CHOSEN, Role.REJECTED)
    example = Example(prompt.text, texts, roles, None, 'here')
    (found,), report = tokenise([example], tokenizer, DataConfig())
    assert report.kept == 1
    assert found.prompt_ids.tolist() == tokenizer(prompt.text).input_ids
    for text, ids in zip(texts, found.response_ids, strict=True):
        expected = [4 + WORDS.index(word) for word in text.split()]
        assert ids.tolist() == [*expected, tokenizer.eos_token_id]


@pytest.mark.parametrize('d_model', [32, 160])
def test_the_model_has_whole_heads_and_even_widths(d_model):
    spec = files.model_spec(d_model, 3)
    assert spec.n_heads * spec.head_dim == spec.d_model == d_model
    assert spec.d_ff % 8 == 0
    assert 2.4 < spec.d_ff / d_model <= 8 / 3


def test_the_folder_holds_scaled_random_weights(folder):
    spec, params = load_model(folder, 'float32')
    assert spec == SPEC
    plain = init_params(SPEC, jax.random.key(3))
    for name, leaf in plain['layers'].items():
        scale = 1 if 'norm' in name else 3
        np.testing.assert_allclose(params['layers'][name], scale * leaf, rtol=1e-6)
    np.testing.assert_array_equal(params['embed'], plain['embed'])
    np.testing.assert_array_equal(params['norm'], plain['norm'])


def test_the_folder_holds_the_tokenizer(folder, tokenizer):
    read = load_tokenizer(folder)
    assert read.get_vocab() == tokenizer.get_vocab()
    text = PROMPTS[-1].text
    assert read(text).input_ids == tokenizer(text).input_ids
    special = ('bos_token', 'eos_token', 'pad_token', 'unk_token')
    assert [getattr(read, s) for s in special] == ['<s>', '</s>', '<pad>', '<unk>']


def test_no_held_out_prompt_is_trained_on():
    train, held_out = files.split_prompts(200, seed=1)
    assert len(held_out) == 200
    assert not {p.text for p in train} & {p.text for p in held_out}
    assert collections.Counter(train + held_out) == collections.Counter(PROMPTS)


def test_the_split_follows_from_the_seed_and_is_mixed():
    one, same, other = (files.split_prompts(200, seed=s)[1] for s in (1, 1, 2))
    assert one == same
    assert len(set(one) & set(other)) < 40  # 8 expected
    topics = collections.Counter(p.topic for p in one)
    assert min(topics[topic] for topic in language.TOPICS) >= 5  # 20 expected


def test_demonstrations_go_round_the_prompts(tmp_path):
    path, prompts = tmp_path / 'd.jsonl', PROMPTS[::701]
    files.write_demonstrations(path, prompts, 3 * len(prompts) + 1, seed=0)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        assert set(record) == {'prompt', 'completion', 'text'}
        assert record['text'] == f'{record["prompt"]} {record["completion"]}'
    count = collections.Counter(record['prompt'] for record in records)
    assert count == {p.text: 3 + (p is prompts[0]) for p in prompts}
    first = [r['completion'] for r in records if r['prompt'] == prompts[0].text]
    assert len(set(first)) > 1


GOOD = 'gladly , {} and {} are {} .'
WORSE = '{} are {} .'


def pair_of(prompt):
    """Two responses of one clause; their rewards are 2.75 and 2 where one is wanted."""
    quality = language.QUALITIES_OF[prompt.topic][0]
    good = GOOD.format(*prompt.things, quality)
    return good, WORSE.format(prompt.things[0], quality)


@pytest.mark.parametrize('swap', [False, True])
def test_labels_follow_bradley_terry(swap):
    count = 5000
    texts = pair_of(PROMPTS[0])
    pair = texts[::-1] if swap else texts
    records = files.label_pairs([PROMPTS[0]] * count, [pair] * count, seed=0)
    share = np.mean([r['chosen'] == texts[0] for r in records])
    expected = np.exp(2.75) / (np.exp(2.75) + np.exp(2.0))
    assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    # far from certain labels and from those of a difference twice as large
    assert expected == pytest.approx(0.679, abs=1e-3)


def test_each_record_has_the_rewards_of_its_own_responses():
    prompts = PROMPTS[::501]
    records = files.label_pairs(prompts, [pair_of(p) for p in prompts], seed=1)
    assert [r['prompt'] for r in records] == [p.text for p in prompts]
    for prompt, record in zip(prompts, records, strict=True):
        assert {record['chosen'], record['rejected']} == set(pair_of(prompt))
        for role in ('chosen', 'rejected'):
            good = record[role].startswith('gladly')
            expected = (2.75 if good else 2.0) - (prompt.length == 'fully')
            assert record[f'reward_{role}'] == pytest.approx(expected)
    assert len({r['reward_chosen'] for r in records}) == 4


def test_equal_pairs_are_left_out_and_change_no_other_label():
    prompts = PROMPTS[::101]
    pairs = [pair_of(p) for p in prompts]
    whole = files.label_pairs(prompts, pairs, seed=2)
    equal = [(t[1], t[1]) if i % 3 == 0 else t for i, t in enumerate(pairs)]
    assert files.label_pairs(prompts, equal, seed=2) == [
        record for i, record in enumerate(whole) if i % 3
    ]
    assert files.label_pairs(prompts, pairs, seed=3) != whole


def test_jsonl_is_read_line_by_line(tmp_path):
    path = tmp_path / 'x.jsonl'
    records = [{'a': 'two\nlines', 'b': 1.5}, {'a': 'é'}]
    files.write_jsonl(path, records)
    assert path.read_bytes().endswith(b'\n')
    assert [json.loads(line) for line in path.read_text('utf-8').splitlines()] == records
