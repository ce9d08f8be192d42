"""Records as examples: limits, bad lines, and data as they were published."""

import gzip
import json

import jax
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.examples import read_examples
from epa_jax.data.sources import DataError
from epa_jax.types import Role

RECORDS = [{'prompt': f'p{i}', 'chosen': 'a', 'rejected': 'b'} for i in range(3)]
LINES = ''.join(json.dumps(record) + '\n' for record in RECORDS)


def test_the_first_examples_alone(tmp_path):
    (tmp_path / 'd.jsonl').write_text(LINES, 'utf-8')
    examples, report = read_examples(str(tmp_path / 'd.jsonl'), limit=2)
    assert (len(examples), report.read) == (2, 2)


def test_a_part_may_hold_no_example(tmp_path, monkeypatch):
    (tmp_path / 'd.jsonl').write_text(LINES, 'utf-8')
    monkeypatch.setattr(jax, 'process_count', lambda: 4)
    monkeypatch.setattr(jax, 'process_index', lambda: 0)
    examples, report = read_examples(str(tmp_path / 'd.jsonl'), own=True)
    assert (examples, report.read) == ([], 0)


BAD = '{"prompt": "p", "chosen": "a"}\n' + LINES + '{"prompt":\n{"prompt": "q"}\n'


def test_a_bad_line_is_an_error_with_its_place(tmp_path):
    path = tmp_path / 'd.jsonl'
    path.write_text(BAD, 'utf-8')
    with pytest.raises(DataError, match=r"d\.jsonl:1: keys \['chosen', 'prompt'\] fit no"):
        read_examples(str(path))
    with pytest.raises(DataError, match=r"d\.jsonl:1: rejected is missing.*'skip'"):
        read_examples(str(path), layout='pairs')


def test_bad_lines_are_skipped_and_counted_by_reason(tmp_path):
    path = tmp_path / 'd.jsonl'
    path.write_text(BAD, 'utf-8')
    examples, report = read_examples(str(path), layout='pairs', bad_lines='skip')
    assert [example.prompt for example in examples] == ['p0', 'p1', 'p2']
    assert report.read == 3
    assert report.skipped == {
        'rejected is missing': 1,
        'chosen is missing': 1,
        'not JSON: Expecting value (column 11)': 1,
    }
    assert report.first_skipped['rejected is missing'] == f'{path}:1'


def test_only_bad_lines_are_no_examples(tmp_path):
    (tmp_path / 'd.jsonl').write_text('{}\n{}\n')
    with pytest.raises(DataError, match='no examples; 2 bad lines'):
        read_examples(str(tmp_path / 'd.jsonl'), bad_lines='skip')


def test_an_unknown_layout(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.layout='table': expected auto or one of"):
        read_examples(str(tmp_path), layout='table')


def test_hh_rlhf_as_published(shared_data):
    path = str(shared_data / 'hh_rlhf_harmless_test.jsonl.gz')
    with pytest.raises(DataError, match=r'gz:1255: chosen and rejected differ before'):
        read_examples(path)
    examples, report = read_examples(path, bad_lines='skip')
    # in these five, one of the two has another Assistant turn before its last
    assert report.skipped == {
        'chosen and rejected differ before their last Assistant turn': 5
    }
    assert len(examples) == report.read == 2307
    with gzip.open(path, 'rt', encoding='utf-8') as file:
        raw = [json.loads(line) for line in file]
    for example in examples:
        record = raw[int(example.origin.rpartition(':')[2]) - 1]
        for text, name in zip(example.responses, ('chosen', 'rejected'), strict=True):
            assert record[name].rpartition('\n\nAssistant:')[2].strip() == text
        assert example.prompt[-1].role == 'user'
        assert record['chosen'].count('\n\nHuman:') == len(
            [m for m in example.prompt if m.role == 'user']
        )


def test_alpaca_eval_as_published(shared_data):
    examples, report = read_examples(str(shared_data / 'alpaca_eval_nary.jsonl.gz'))
    assert (report.read, report.skipped) == (603, {})
    for example in examples:
        assert len(example.responses) == len(example.ratings) == 8
        assert example.ratings[example.roles.index(Role.CHOSEN)] == max(example.ratings)
