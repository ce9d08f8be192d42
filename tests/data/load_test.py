"""What is trained on and what is held out: disjoint by prompt, repeatable, all counted."""

import collections
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.config import ConfigError
from epa_jax.data.load import (
    BEYOND_LIMIT,
    HELD_OUT,
    NO_NEGATIVE,
    held_out_prompts,
    load_datasets,
)
from epa_jax.data.tokenise import prompt_key
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role
from tests.data.tokenizers_in_memory import CHATML, made, text_of

PAIR = (Role.CHOSEN, Role.REJECTED)


def pairs(prompts, start=0):
    return [
        {'prompt': prompt, 'chosen': f'yes {i}', 'rejected': f'no {i}'}
        for i, prompt in enumerate(prompts, start)
    ]


def write(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records), 'utf-8')
    return str(path)


def load(train, min_strong=1, **keys):
    return load_datasets(
        DataConfig(train=train, **keys), made('chatml'), min_strong=min_strong
    )


def keys_of(examples):
    return {example.prompt_key for example in examples}


def lines(examples):
    """Line numbers, from 1."""
    return [int(example.origin.rpartition(':')[2]) for example in examples]


def examples_of(prompts):
    return [Example(p, ('a', 'b'), PAIR, None, f'd:{i}') for i, p in enumerate(prompts, 1)]


def split_examples(examples, count, seed):
    keys = [prompt_key(example.prompt) for example in examples]
    chosen = held_out_prompts(keys, count, seed)
    sides = [], []
    for example, key in zip(examples, keys, strict=True):
        sides[key in chosen].append(example)
    return sides


@given(
    st.lists(st.sampled_from('abcdefgh'), min_size=3, max_size=30),
    st.integers(1, 20),
    st.integers(0, 9),
)
def test_a_split_takes_whole_prompts(prompts, count, seed):
    examples = examples_of(prompts)
    try:
        train, held_out = split_examples(examples, count, seed)
    except ConfigError:  # then some choice of whole prompts leaves nothing
        sizes = collections.Counter(prompts)
        assert count > len(prompts) - max(sizes.values())
        return
    assert not {e.prompt for e in train} & {e.prompt for e in held_out}
    assert sorted(lines(train) + lines(held_out)) == list(range(1, len(prompts) + 1))
    assert lines(train) == sorted(lines(train))
    assert lines(held_out) == sorted(lines(held_out))
    assert train
    assert count <= len(held_out)
    largest = max(collections.Counter(e.prompt for e in held_out).values())
    assert len(held_out) < count + largest  # one prompt fewer would be too few


def test_a_split_is_the_same_in_every_process():
    """These very numbers: nothing may depend on Python's salted hashes or on the order."""
    examples = examples_of([f'prompt {i}' for i in range(12)])
    _, held_out = split_examples(examples, 4, seed=0)
    assert lines(held_out) == [1, 10, 11, 12]
    _, reversed_ = split_examples(examples[::-1], 4, seed=0)
    assert lines(reversed_) == lines(held_out)[::-1]


def test_other_seeds_hold_out_others_each_as_often():
    examples = examples_of([f'prompt {i}' for i in range(10)])
    seeds = 400
    held_out = collections.Counter(
        line
        for seed in range(seeds)
        for line in lines(split_examples(examples, 3, seed)[1])
    )
    sigma = (seeds * 0.3 * 0.7) ** 0.5
    assert all(abs(held_out[line] - seeds * 0.3) < 5 * sigma for line in range(1, 11))


def test_the_same_prompt_in_another_form_stays_on_its_side():
    forms = ['Hi', ' Hi\n', (Message('user', 'Hi'),), (Message('user', 'Hi '),)]
    examples = examples_of([*forms, *'abcdefgh'])
    for seed in range(20):
        for side in split_examples(examples, 2, seed):
            assert len({1, 2, 3, 4} & set(lines(side))) in (0, 4)


@pytest.mark.parametrize('count', [3, 99])
def test_a_split_that_leaves_nothing_is_refused(count):
    with pytest.raises(
        ConfigError, match=rf'eval_examples={count}: only 3 examples in all'
    ):
        split_examples(examples_of('abc'), count, 0)


def test_a_run_holds_out_its_share(tmp_path):
    prompts = [f'prompt {i % 15}' for i in range(20)]  # five occur twice
    train = write(tmp_path / 'd.jsonl', pairs(prompts))
    data = load(train, eval_examples=4, split_seed=3)
    assert not keys_of(data.train) & keys_of(data.held_out)
    assert 4 <= len(data.held_out) <= 5
    assert sorted(lines(data.train) + lines(data.held_out)) == list(range(1, 21))
    assert lines(load(train, eval_examples=4, split_seed=3).held_out) == lines(
        data.held_out
    )
    others = {
        tuple(lines(load(train, eval_examples=4, split_seed=s).held_out)) for s in range(5)
    }
    assert len(others) > 1
    assert [report.read for report in data.read] == [20]
    assert load(train).held_out == []


def test_prompts_of_another_held_out_source_are_dropped_and_counted(tmp_path):
    """The held-out side keeps its examples; the training side gives them up."""
    train = write(tmp_path / 'train.jsonl', pairs('abcabd'))
    messages = [{'role': 'user', 'content': 'b'}]
    other = [{'prompt': messages, 'chosen': [says('x')], 'rejected': [says('y')]}]
    held_out = write(tmp_path / 'test.jsonl', [*pairs([' a\n', 'e', 'e']), *other])
    data = load(train, eval=held_out)
    assert lines(data.train) == [3, 6]
    assert lines(data.held_out) == [1, 2, 3, 4]
    assert data.tokenised.dropped == {HELD_OUT: 4}
    assert data.tokenised.first_dropped == {HELD_OUT: f'{train}:1'}
    assert (data.tokenised.kept, data.held_out_tokenised.kept) == (2, 4)
    assert data.held_out_tokenised.dropped == {}
    assert [(r.source, r.read) for r in data.read] == [(train, 6), (held_out, 4)]


def test_as_many_of_a_held_out_source_as_asked_for(tmp_path):
    train = write(tmp_path / 'train.jsonl', pairs('abcd'))
    held_out = write(tmp_path / 'test.jsonl', pairs('dcxy'))
    data = load(train, eval=held_out, eval_examples=1)
    assert (lines(data.train), lines(data.held_out)) == ([1, 2, 3], [1])
    assert data.tokenised.dropped == {HELD_OUT: 1}  # 'c' is not evaluated on


def test_the_training_file_cannot_be_its_own_held_out_source(tmp_path):
    train = write(tmp_path / 'd.jsonl', pairs('abc'))
    with pytest.raises(ConfigError, match=f"no example remains .*'{HELD_OUT}': 3"):
        load(train, eval=train)


def says(text):
    return {'role': 'assistant', 'content': text}


def test_a_limit_of_examples_is_counted(tmp_path):
    train = write(tmp_path / 'd.jsonl', pairs('abcdefgh'))
    data = load(train, max_examples=3, eval_examples=2)
    assert (len(data.train), len(data.held_out)) == (3, 2)
    assert data.tokenised.dropped == {BEYOND_LIMIT: 3}
    # the limit takes nothing from what is held out, and changes no choice
    assert lines(load(train, eval_examples=2).held_out) == lines(data.held_out)


def test_examples_without_a_negative_are_dropped_and_counted_on_both_sides(tmp_path):
    usable = pairs('ab')
    same = {'prompt': 'c', 'chosen': 'yes', 'rejected': 'yes'}
    tied = {'prompt': 'd', 'responses': ['yes', 'no'], 'ratings': [1, 1]}
    train = write(tmp_path / 'train.jsonl', [*usable, same, tied])
    held_out = write(tmp_path / 'test.jsonl', [*pairs('e'), {**same, 'prompt': 'f'}])
    data = load(train, eval=held_out)
    assert (lines(data.train), lines(data.held_out)) == ([1, 2], [1])
    assert data.tokenised.dropped == {NO_NEGATIVE: 2}
    assert data.held_out_tokenised.dropped == {NO_NEGATIVE: 1}
    assert data.tokenised.first_dropped == {NO_NEGATIVE: f'{train}:3'}
    assert (data.tokenised.kept, data.held_out_tokenised.kept) == (2, 1)
    assert lines(load(train, min_strong=0).train) == [1, 2, 3, 4]


def test_what_is_dropped_counts_as_nothing_else(tmp_path):
    """An example without a negative does not add to the truncated ones."""
    long = 'a test and a test ' * 30
    record = {'prompt': long, 'chosen': long, 'rejected': long}
    train = write(tmp_path / 'd.jsonl', [record, *pairs('ab')])
    report = load(train, max_prompt_tokens=16, max_response_tokens=16).tokenised
    assert report.dropped == {NO_NEGATIVE: 1}
    assert (report.truncated_prompts, report.truncated_responses) == (0, 0)
    whole = load(train, min_strong=0, max_prompt_tokens=16, max_response_tokens=16)
    assert (whole.tokenised.truncated_prompts, whole.tokenised.truncated_responses) == (
        1,
        2,
    )


def test_no_held_out_example_remains(tmp_path):
    train = write(tmp_path / 'train.jsonl', pairs('ab'))
    same = {'prompt': 'c', 'chosen': 'yes', 'rejected': 'yes'}
    held_out = write(tmp_path / 'test.jsonl', [same])
    with pytest.raises(ConfigError, match=r'no held-out example remains; .*too few'):
        load(train, eval=held_out)


@pytest.mark.parametrize(
    'record',
    [
        {'prompt': 'Hi', 'completion': 'yes'},
        {'messages': [{'role': 'user', 'content': 'Hi'}, says('yes')]},
        {'prompt': [{'role': 'user', 'content': 'Hi'}], 'completion': [says('yes')]},
    ],
    ids=['text', 'messages', 'prompt and completion of messages'],
)
def test_single_responses_train_a_likelihood_and_no_preference(tmp_path, record):
    train = write(tmp_path / 'd.jsonl', [record])
    (example,) = load(train, min_strong=0).train
    assert example.roles.tolist() == [Role.CHOSEN]
    assert text_of(made('chatml'), example.response_ids[0]) == 'yes<|im_end|>'
    with pytest.raises(ConfigError, match=f'no example remains .*{NO_NEGATIVE}'):
        load(train)


@given(
    st.lists(
        st.tuples(st.sampled_from('abcdef'), st.sampled_from(['yes', 'no', 'no ' * 40])),
        min_size=4,
        max_size=12,
    ),
    st.integers(0, 3),
    st.integers(0, 4),
    st.sampled_from(['drop', 'truncate_right']),
)
def test_every_example_read_is_kept_or_counted(tmp_path_factory, rows, hold, limit, policy):
    records = [{'prompt': p, 'chosen': 'yes', 'rejected': r} for p, r in rows]
    train = write(tmp_path_factory.mktemp('load') / 'd.jsonl', records)
    keys = {'max_response_tokens': 16, 'overlong_response': policy, 'eval_examples': hold}
    try:
        data = load(train, max_examples=limit, **keys)
    except ConfigError:  # nothing remains on one side
        return
    assert data.tokenised.kept == len(data.train)
    assert data.held_out_tokenised.kept == len(data.held_out)
    reports = (data.tokenised, data.held_out_tokenised)
    dropped = sum(sum(report.dropped.values()) for report in reports)
    assert len(data.train) + len(data.held_out) + dropped == data.read[0].read == len(rows)


WHY = {'role': 'user', 'content': 'Why'}
YES, NO = says('yes'), says('no')
RATED = [('yes', 2), ('no', 1)]
SAME = [
    {'prompt': 'Why', 'chosen': 'yes', 'rejected': 'no'},
    {'prompt': 'Why', 'chosen': 'yes', 'rejected': ['no']},
    {
        'chosen': '\n\nHuman: Why\n\nAssistant: yes',
        'rejected': '\n\nHuman: Why\n\nAssistant: no',
    },
    {'chosen': [WHY, YES], 'rejected': [WHY, NO]},
    {'prompt': [WHY], 'chosen': [YES], 'rejected': [NO]},
    {'prompt': 'Why', 'responses': ['yes', 'no'], 'ratings': [2, 1]},
    {'prompt': [WHY], 'responses': [{'text': t, 'rating': r} for t, r in RATED]},
    {
        'instruction': 'Why',
        'completions': [{'response': t, 'overall_score': r} for t, r in RATED],
    },
    {'prompt': 'Why', 'completion': 'yes'},
    {'messages': [WHY, YES]},
]


@pytest.mark.parametrize('held_out', [False, True], ids=['training', 'held out'])
def test_the_chat_template_is_applied_on_every_path(tmp_path, held_out):
    """Any layout of the same words, trained or evaluated on, gives the same tokens."""
    source = write(tmp_path / 'd.jsonl', SAME)
    other = write(tmp_path / 'other.jsonl', pairs('ab'))
    sources = (other, source) if held_out else (source, other)
    data = load(sources[0], min_strong=0, eval=sources[1])
    examples = data.held_out if held_out else data.train
    assert len(examples) == len(SAME)
    tokenizer = made('chatml')
    expected = tokenizer.apply_chat_template(
        [WHY], chat_template=CHATML, add_generation_prompt=True, return_dict=False
    )
    for example in examples:
        assert example.prompt_ids.tolist() == expected
        said = [text_of(tokenizer, ids) for ids in example.response_ids]
        assert said == ['yes<|im_end|>', 'no<|im_end|>'][: len(said)]
    assert keys_of(examples) == {prompt_key('Why')}
