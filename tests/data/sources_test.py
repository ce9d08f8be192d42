"""Files, folders and hub names; every way they can be unreadable."""

import gzip
import json

import datasets
import pytest

from epa_jax.data.examples import read_examples
from epa_jax.data.sources import DataError

RECORDS = [{'prompt': f'p{i}', 'chosen': 'a', 'rejected': 'b'} for i in range(3)]
LINES = ''.join(json.dumps(record) + '\n' for record in RECORDS)


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path_factory):
    """Data sets that a test makes are neither announced nor left in the user's cache."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('ds'))
    datasets.disable_progress_bars()


def write_jsonl(path):
    path.write_text(LINES, 'utf-8')


def write_jsonl_gz(path):
    path.write_bytes(gzip.compress(LINES.encode()))


def write_json(path):
    path.write_text(json.dumps(RECORDS), 'utf-8')


def write_json_gz(path):
    path.write_bytes(gzip.compress(json.dumps(RECORDS).encode()))


def write_parquet(path):
    datasets.Dataset.from_list(RECORDS).to_parquet(str(path))


def write_folder(path):
    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path))


def write_folder_of_one_split(path):
    split = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict(train=split).save_to_disk(str(path))


@pytest.mark.parametrize(
    ('name', 'write'),
    [
        ('d.jsonl', write_jsonl),
        ('d.jsonl.gz', write_jsonl_gz),
        ('d.json', write_json),
        ('d.json.gz', write_json_gz),
        ('d.parquet', write_parquet),
        ('folder', write_folder),
        ('splits', write_folder_of_one_split),
    ],
)
def test_every_kind_of_source(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    examples, report = read_examples(str(path))
    assert [example.prompt for example in examples] == ['p0', 'p1', 'p2']
    assert [example.origin for example in examples] == [f'{path}:{n}' for n in (1, 2, 3)]
    assert (report.source, report.read, report.skipped) == (str(path), 3, {})


@pytest.mark.parametrize(
    ('name', 'write'), [('d.parquet', write_parquet), ('folder', write_folder)]
)
def test_local_data_are_read_silently_and_not_cached(
    tmp_path, monkeypatch, capfd, name, write
):
    cache = tmp_path / 'cache'
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)
    write(tmp_path / name)
    before = {path for path in cache.rglob('*') if path.is_file()}
    datasets.enable_progress_bars()
    capfd.readouterr()
    assert len(read_examples(str(tmp_path / name))[0]) == 3
    assert {path for path in cache.rglob('*') if path.is_file()} == before
    assert capfd.readouterr() == ('', '')
    assert not datasets.are_progress_bars_disabled()  # the caller's choice is kept


def test_messages_survive_a_data_set_of_the_hub(tmp_path):
    messages = [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'a'}]
    record = {
        'chosen': messages,
        'rejected': [messages[0], {**messages[1], 'content': 'b'}],
    }
    rated = {
        'instruction': 'Hi',
        'completions': [
            {'response': r, 'overall_score': s} for r, s in (('a', 1.0), ('b', 2.0))
        ],
    }
    for kind, one in (('pairs', record), ('rated', rated)):
        datasets.Dataset.from_list([one]).to_parquet(str(tmp_path / f'{kind}.parquet'))
        (example,), _ = read_examples(str(tmp_path / f'{kind}.parquet'))
        assert example.responses == ('a', 'b')


def test_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / 'd.jsonl'
    path.write_text('\ufeff\n' + LINES.replace('\n', '\n\n'), 'utf-8')
    examples, _ = read_examples(str(path))
    assert [example.origin for example in examples] == [f'{path}:{n}' for n in (2, 4, 6)]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('d.jsonl', b'', r'd\.jsonl: no examples; 0 bad lines'),
        ('d.jsonl', b'\xff\xfe', r'd\.jsonl:1: not UTF-8: byte 0xff at character 1'),
        ('d.jsonl.gz', b'plain', r'd\.jsonl\.gz: cannot be read: .*gzip'),
        (
            'd.jsonl.gz',
            gzip.compress(LINES.encode(), mtime=0)[:-9],
            r'cannot be read: .*ended',
        ),
        ('d.jsonl.gz', b'\x1f\x8b\x08' + b'\0' * 7 + b'\7' * 9, r'cannot be read: .*block'),
        ('d.json', b'{"a": 1}', r'd\.json: expected a list of records, found dict'),
        ('d.json', LINES.encode(), r'd\.json: not JSON: .*name a file .* \.jsonl'),
        ('d.json', b'[1,', r'd\.json: not JSON: Expecting value.*\)$'),
        ('d.parquet', b'garbage', r'd\.parquet: cannot be read as parquet'),
        ('d.parquet', b'', r'd\.parquet: cannot be read as parquet'),
        ('d.parquet', b'PAR1' + b'\7' * 99 + b'PAR1', r'd\.parquet: cannot be read as'),
        ('d.csv', b'a,b', r'd\.csv: expected a file ending in \.jsonl, '),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_examples(str(tmp_path / name))


@pytest.mark.parametrize('name', ['gone.jsonl', './gone', 'data/gone.parquet'])
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(DataError, match=f'{name}: no such file or folder'):
        read_examples(name)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(DataError, match='expected a folder written by datasets'):
        read_examples(str(tmp_path))


def test_a_folder_of_several_splits(tmp_path):
    split = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict(train=split, test=split).save_to_disk(str(tmp_path / 'd'))
    with pytest.raises(DataError, match=r'holds the splits train, test; name .*d/train$'):
        read_examples(str(tmp_path / 'd'))
    assert len(read_examples(str(tmp_path / 'd' / 'test'))[0]) == 3


def test_the_hub_out_of_reach():
    with pytest.raises(DataError, match=r'nobody/nothing:test: neither a file or folder'):
        read_examples('nobody/nothing:test')


@pytest.mark.parametrize(
    ('source', 'split'), [('somebody/pairs', 'train'), ('somebody/pairs:test', 'test')]
)
def test_a_split_of_the_hub(monkeypatch, source, split):
    asked = []

    def load_dataset(name, split):
        asked.append((name, split, datasets.are_progress_bars_disabled()))
        return datasets.Dataset.from_list(RECORDS)

    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)
    datasets.enable_progress_bars()
    examples, _ = read_examples(source)
    assert asked == [('somebody/pairs', split, True)]
    assert not datasets.are_progress_bars_disabled()
    assert examples[2].origin == f'{source}:3'
