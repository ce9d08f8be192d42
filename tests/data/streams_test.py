"""Text beside the preference data, as configured."""

import dataclasses
import json

import pytest

from epa_jax.config import ConfigError
from epa_jax.data.load import HELD_OUT
from epa_jax.data.streams import load_streams
from epa_jax.data.tokenise import prompt_key
from epa_jax.schema import PretrainConfig, RunConfig, SftConfig
from tests.data.tokenizers_in_memory import chatml, text_of

TOKENIZER = chatml(template=None)


@pytest.fixture
def run(tmp_path):
    """Six pairs and five texts."""
    pairs = [
        {'prompt': f'what is {i}? ', 'chosen': f'it is {i}', 'rejected': 'no'}
        for i in range(6)
    ]
    texts = [{'text': f'{i} and more ' * (i + 1)} for i in range(5)]
    for name, rows in {'pairs': pairs, 'texts': texts}.items():
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return RunConfig(
        sft=SftConfig(train=str(tmp_path / 'pairs.jsonl'), weight=0.5, sequences=2),
        pretrain=PretrainConfig(train=str(tmp_path / 'texts.jsonl'), max_tokens=8),
    )


def changed(run, group, **changes):
    return dataclasses.replace(
        run, **{group: dataclasses.replace(getattr(run, group), **changes)}
    )


def test_no_stream_unless_named():
    assert load_streams(RunConfig(), TOKENIZER) == []


def test_the_chosen_response_is_the_one_to_imitate(run):
    sft, pretrain = load_streams(run, TOKENIZER)
    assert (sft.name, sft.weight, sft.sequences) == ('sft', 0.5, 2)
    assert [text_of(TOKENIZER, e.response_ids[0]) for e in sft.train] == [
        f'it is {i}<|im_end|>' for i in range(6)
    ]
    assert pretrain.name == 'pretrain'
    assert {len(e.response_ids) for e in pretrain.train} == {1}
    assert max(1 + len(e.response_ids[0]) for e in pretrain.train) == 8
    assert (sft.held_out, pretrain.held_out) == ([], [])


def test_prompts_held_out_elsewhere_are_not_imitated(run):
    (sft, _) = load_streams(run, TOKENIZER, {prompt_key('what is 3? ')})
    assert len(sft.train) == 5
    assert sft.tokenised.dropped == {HELD_OUT: 1}
    with pytest.raises(ConfigError, match=r'sft\.train=.*no example remains'):
        load_streams(run, TOKENIZER, {prompt_key(f'what is {i}? ') for i in range(6)})


@pytest.mark.parametrize('source', ['', 'own'])
def test_held_out_text_comes_from_the_source_or_its_own(run, source):
    for group in ('sft', 'pretrain'):
        train = getattr(run, group).train
        run = changed(run, group, eval_examples=2, eval=train if source else '')
    sft, pretrain = load_streams(run, TOKENIZER)
    assert len(sft.held_out) == 2
    assert len({e.origin for e in pretrain.held_out}) == 2
    held_out = {e.prompt_key for e in sft.held_out}
    assert not held_out & {e.prompt_key for e in sft.train}
    if not source:
        origins = {e.origin for e in pretrain.train}
        assert not origins & {e.origin for e in pretrain.held_out}


def test_a_split_that_leaves_nothing_names_its_key(run):
    with pytest.raises(ConfigError, match=r'sft\.eval_examples=6'):
        load_streams(changed(run, 'sft', eval_examples=6), TOKENIZER)
