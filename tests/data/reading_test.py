"""What is read does not depend on how many processes read it; each reads its part."""

import dataclasses
import gzip
import json

import datasets
import jax
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data import documents, examples
from epa_jax.data.load import BEYOND_LIMIT, HELD_OUT, load_datasets
from epa_jax.data.reading import read_parts
from epa_jax.data.sources import DataError, records
from epa_jax.data.streams import load_streams
from epa_jax.schema import DataConfig, PretrainConfig, RunConfig, SftConfig
from tests.data.exchange_test import assert_same
from tests.data.pod import Pod
from tests.data.tokenizers_in_memory import made

COUNT = 23
PAIRS = [
    {
        'prompt': f'prompt {i % 17}',
        'chosen': f'yes {i}',
        'rejected': f'no {i}' * (1 + i % 5),
    }
    for i in range(COUNT)
]
LINES = [json.dumps(record) for record in PAIRS]


def write_lines(path):
    path.write_text('\n\n'.join(LINES), 'utf-8')


def write_gz(path):
    path.write_bytes(gzip.compress('\r\n'.join(LINES).encode('utf-8-sig')))


def write_list(path):
    path.write_text(json.dumps(PAIRS), 'utf-8')


def write_parquet(path):
    datasets.Dataset.from_list(PAIRS).to_parquet(str(path), batch_size=5)


def write_folder(path):
    datasets.Dataset.from_list(PAIRS).save_to_disk(str(path))


KINDS = {
    'd.jsonl': write_lines,
    'd.jsonl.gz': write_gz,
    'd.json': write_list,
    'd.parquet': write_parquet,
    'folder': write_folder,
}


@pytest.fixture
def source(tmp_path):
    write_lines(tmp_path / 'd.jsonl')
    return str(tmp_path / 'd.jsonl')


@pytest.mark.parametrize('processes', [1, 2, 5, 30])
@pytest.mark.parametrize('name', KINDS)
def test_each_process_reads_its_part_and_together_they_read_all(
    tmp_path, monkeypatch, name, processes
):
    path = tmp_path / name
    KINDS[name](path)
    whole = list(records(str(path)))
    assert [record for _, record in whole] == PAIRS
    found = Pod(monkeypatch, processes).run(lambda: list(records(str(path), own=True)))
    assert [record for part in found for record in part] == whole
    assert max(map(len, found)) <= COUNT / processes + 1.5


def test_each_process_reads_its_part_of_a_data_set_of_the_hub(monkeypatch):
    table = datasets.Dataset.from_list(PAIRS)
    monkeypatch.setattr(datasets, 'load_dataset', lambda name, split: table)
    whole = list(records('somebody/pairs'))
    found = Pod(monkeypatch, 4).run(lambda: list(records('somebody/pairs', own=True)))
    assert [record for part in found for record in part] == whole
    assert [len(part) for part in found] == [5, 6, 6, 6]


CHANGES = {
    'all': {},
    'held out': {'eval_examples': 5},
    'another source': {'eval': 'other'},
    'some of another source': {'eval': 'other', 'eval_examples': 3},
    'limited': {'max_examples': 9, 'eval_examples': 5},
    'truncated': {'max_response_tokens': 4, 'max_prompt_tokens': 3},
    'dropped': {'max_response_tokens': 6, 'overlong_response': 'drop'},
}


def both_ways(monkeypatch, work, processes):
    """What one process finds, and what the first of several does."""
    return work(), Pod(monkeypatch, processes).agreed(work)


@pytest.mark.parametrize('processes', [2, 3, 30])
@pytest.mark.parametrize('changes', CHANGES.values(), ids=CHANGES)
def test_datasets_and_reports_do_not_depend_on_the_processes(
    source, tmp_path, monkeypatch, changes, processes
):
    (tmp_path / 'other.jsonl').write_text('\n'.join(LINES[3:9]), 'utf-8')
    if 'eval' in changes:
        changes = changes | {'eval': str(tmp_path / 'other.jsonl')}
    cfg = DataConfig(train=source, **changes)

    def work():
        return load_datasets(cfg, made('chatml'), min_strong=1)

    alone, together = both_ways(monkeypatch, work, processes)
    assert_same(together.train, alone.train)
    assert_same(together.held_out, alone.held_out)
    for name in ('read', 'tokenised', 'held_out_tokenised'):
        assert getattr(together, name) == getattr(alone, name)
    assert bool(alone.tokenised.dropped[HELD_OUT]) == ('eval' in changes)
    assert bool(alone.tokenised.dropped[BEYOND_LIMIT]) == ('max_examples' in changes)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('held_out', [{}, {'eval_examples': 4}, {'eval': 'other'}])
def test_nor_do_streams(source, tmp_path, monkeypatch, held_out, processes):
    texts = [json.dumps({'text': f'a test {i} ' * (1 + i % 7)}) for i in range(19)]
    (tmp_path / 't.jsonl').write_text('\n'.join(texts), 'utf-8')
    (tmp_path / 'other').mkdir()
    for name, lines in (('d', LINES[5:8]), ('t', texts[:3])):
        (tmp_path / 'other' / f'{name}.jsonl').write_text('\n'.join(lines), 'utf-8')

    def keys(name):
        other = {'eval': str(tmp_path / 'other' / name)} if 'eval' in held_out else {}
        return {'train': str(tmp_path / name), 'weight': 1.0} | held_out | other

    run = RunConfig(
        sft=SftConfig(**keys('d.jsonl')),
        pretrain=PretrainConfig(**keys('t.jsonl'), max_tokens=8),
    )
    sft, _ = load_streams(run, made('chatml'))
    excluded = set(sorted(example.prompt_key for example in sft.train)[:3])

    def work():
        return load_streams(run, made('chatml'), excluded)

    alone, together = both_ways(monkeypatch, work, processes)
    for one, other in zip(alone, together, strict=True):
        assert_same(other.train, one.train)
        assert_same(other.held_out, one.held_out)
        for name in ('read', 'tokenised', 'held_out_tokenised'):
            assert getattr(other, name) == getattr(one, name)
    assert alone[0].tokenised.dropped[HELD_OUT] >= 3


def test_bad_lines_are_counted_once_and_the_first_is_the_first_of_the_file(
    tmp_path, monkeypatch
):
    lines = list(LINES)
    for number in (5, 9, 20):
        lines[number - 1] = '{"prompt": '
    path = tmp_path / 'd.jsonl'
    path.write_text('\n'.join(lines), 'utf-8')

    def work(policy):
        cfg = DataConfig(train=str(path), bad_lines=policy)
        return load_datasets(cfg, made('chatml'), min_strong=1)

    pod = Pod(monkeypatch, 3)
    (read,) = pod.agreed(lambda: work('skip')).read
    assert read.read == COUNT - 3
    ((reason, count),) = read.skipped.items()
    assert count == 3
    assert read.first_skipped == {reason: f'{path}:5'}
    for error in pod.run(lambda: work('error')):
        assert isinstance(error, DataError)
        assert str(error).startswith(f'{path}:5: ')


def test_an_error_in_the_last_part_is_that_of_all(tmp_path, monkeypatch):
    path = tmp_path / 'd.jsonl'
    path.write_text('\n'.join([*LINES, '[]']), 'utf-8')
    cfg = DataConfig(train=str(path))
    pod = Pod(monkeypatch, 4)
    for error in pod.run(lambda: load_datasets(cfg, made('chatml'), min_strong=1)):
        assert isinstance(error, DataError)
        assert str(error).startswith(f'{path}:{COUNT + 1}: ')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'train': 'none.jsonl'}, 'no such file'),
        ({'layout': 'poem'}, 'data.layout='),
        ({'eval_examples': COUNT}, f'only {COUNT} examples in all'),
        ({'eval': 'blank.jsonl'}, 'no examples; 0 bad lines'),
    ],
)
def test_every_process_gives_the_same_message(
    source, tmp_path, monkeypatch, changes, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'blank.jsonl').write_text('\n\n\n', 'utf-8')
    cfg = dataclasses.replace(DataConfig(train=source), **changes)

    def work():
        return load_datasets(cfg, made('chatml'), min_strong=1)

    with pytest.raises((ConfigError, DataError), match=message) as alone:
        work()
    for error in Pod(monkeypatch, 3).run(work):
        assert (type(error), str(error)) == (alone.type, str(alone.value))


def test_no_process_makes_examples_of_the_records_of_another(source, monkeypatch):
    seen = {index: [] for index in range(3)}
    to_example = examples.to_example

    def counted(record, layout, origin):
        seen[jax.process_index()].append(origin)
        return to_example(record, layout, origin)

    monkeypatch.setattr(examples, 'to_example', counted)
    cfg = DataConfig(train=source, eval_examples=4)
    pod = Pod(monkeypatch, 3)
    data = pod.agreed(lambda: load_datasets(cfg, made('chatml'), min_strong=1))
    assert sorted(map(len, seen.values())) == [7, 8, 8]
    assert len(set().union(*map(set, seen.values()))) == COUNT
    assert len(data.train) + len(data.held_out) == COUNT


def test_a_limited_source_of_texts_is_the_same_too(tmp_path, monkeypatch):
    path = tmp_path / 't.jsonl'
    path.write_text(
        '\n'.join(json.dumps({'text': f'a test {i}'}) for i in range(9)), 'utf-8'
    )
    read = documents.read_documents(str(path), 'text', limit=4)[0]
    run = RunConfig(
        pretrain=PretrainConfig(
            train=str(path), eval=str(path), eval_examples=4, weight=1.0, max_tokens=8
        )
    )

    def work():
        return load_streams(run, made('chatml'))[0]

    alone, together = both_ways(monkeypatch, work, 3)
    assert_same(together.held_out, alone.held_out)
    assert {e.origin for e in alone.held_out} == {document.origin for document in read}
    assert np.sum([len(e.response_ids[0]) for e in alone.held_out]) > 0


@pytest.mark.parametrize('limit', [0, 4])
def test_a_file_that_one_process_lacks_stops_all(monkeypatch, limit):
    def read(source, *, limit, own):
        if jax.process_index() == 1:
            raise DataError(f'{source}: no such file')
        return ['item'], examples.ReadReport(source, read=1)

    def work():
        return read_parts('d.jsonl', read, str.encode, 'items', limit)

    found = Pod(monkeypatch, 3).run(work)
    assert [str(error) for error in found] == ['d.jsonl: no such file'] * 3
