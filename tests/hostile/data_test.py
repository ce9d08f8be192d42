"""Data files that are damaged or made to harm: read, or refused by file and line."""

import gzip
import json
import re

import datasets
import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.data import sources
from epa_jax.data.documents import read_documents, sequences
from epa_jax.data.examples import read_examples
from epa_jax.data.layouts import LAYOUTS
from epa_jax.data.load import load_datasets
from epa_jax.data.prompts import encode_prompts, read_prompts
from epa_jax.data.sources import DataError
from epa_jax.evals.matching import match
from epa_jax.evals.mt_bench import read_questions
from epa_jax.schema import DataConfig
from tests import small_run
from tests.hostile import wild
from tests.hostile.wild import read_or_refuse

USER, ANSWER = {'role': 'user', 'content': 'w1'}, {'role': 'assistant', 'content': 'w2'}
TURNS = '\n\nHuman: w1\n\nAssistant: w2'
RATED = [{'text': 'w2', 'rating': 1}, {'text': 'w3', 'rating': 2}]
RECORDS = [
    {'prompt': 'w1 w2', 'chosen': 'w3', 'rejected': 'w4', 'score_chosen': 2.0,
     'score_rejected': 1},
    {'prompt': 'w1', 'chosen': 'w3', 'rejected': ['w4', 'w5']},
    {'chosen': [USER, ANSWER], 'rejected': [USER, ANSWER | {'content': 'w9'}]},
    {'chosen': 'w1 w2 w3', 'rejected': 'w1 w2 w4'},
    {'chosen': TURNS, 'rejected': TURNS + ' w3'},
    {'prompt': 'w1', 'responses': RATED},
    {'prompt': [USER], 'responses': ['w2', 'w3'], 'ratings': [1, 2]},
    {'instruction': 'w1', 'completions': [{'response': 'w2', 'overall_score': 1},
                                          {'response': 'w3', 'overall_score': 2}]},
    {'prompt': 'w1', 'completion': 'w2'},
    {'messages': [USER, ANSWER]},
    {'text': 'w1 w2'},
    {'question_id': 1, 'category': 'writing', 'turns': ['w1', 'w2']},
    {'instruction': 'w1', 'output': 'w2'},
]  # fmt: skip
TOKENIZER = small_run.tokenizer()


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path_factory.mktemp('ds'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('data')


def train_on(path, **changes):
    cfg = DataConfig(train=str(path), **changes)
    return load_datasets(cfg, TOKENIZER, min_strong=0)


READERS = [
    train_on,
    lambda path: train_on(path, bad_lines='skip'),
    lambda path: train_on(path, chat_template='none', overlong_prompt='drop'),
    lambda path: encode_prompts(read_prompts(str(path)), TOKENIZER, DataConfig()),
    lambda path: sequences(read_documents(str(path), 'text')[0], TOKENIZER, 16),
    lambda path: read_questions(str(path)),
    lambda path: match(str(path), str(path)),
]


@wild.examples(150)
@hypothesis.given(st.data())
def test_damaged_records(folder, data):
    record = data.draw(wild.damaged(data.draw(st.sampled_from(RECORDS))))
    path = folder / 'd.jsonl'
    path.write_text(wild.dumps(record) + '\n', 'utf-8')
    for read in READERS:
        read_or_refuse(lambda read=read: read(path), path)
    for layout in LAYOUTS:
        read_or_refuse(lambda layout=layout: read_examples(str(path), layout=layout), path)


@wild.examples(60)
@hypothesis.given(
    st.data(), st.sampled_from(['d.jsonl', 'd.jsonl.gz', 'd.json', 'd.json.gz'])
)
def test_damaged_bytes(folder, data, name):
    lines = '\n'.join(json.dumps(record) for record in RECORDS[:3])
    content = (f'[{lines}]' if name[1:6] == '.json' else lines).encode()
    path = folder / name
    if name.endswith('.gz'):
        content = gzip.compress(content, mtime=0)
        path.write_bytes(data.draw(wild.cut_or_changed(content)))
    else:
        path.write_bytes(data.draw(wild.cut_or_changed(content)))
    for bad_lines in ('error', 'skip'):
        read_or_refuse(lambda b=bad_lines: read_examples(str(path), bad_lines=b), path)


@pytest.fixture(scope='module')
def stored(folder):
    """Files of good data sets, by name and content."""
    made = datasets.Dataset.from_list(RECORDS[:1] * 3)
    made.to_parquet(str(folder / 'good.parquet'))
    made.save_to_disk(str(folder / 'saved'))
    files = {p.name: p.read_bytes() for p in (folder / 'saved').iterdir()}
    return {'d.parquet': (folder / 'good.parquet').read_bytes()} | files


@wild.examples(40)
@hypothesis.given(st.data())
def test_damaged_data_sets(folder, stored, data):
    name = data.draw(st.sampled_from(sorted(stored)))
    target = folder / 'saved' if name != 'd.parquet' else folder / name
    path = target / name if name != 'd.parquet' else target
    path.write_bytes(data.draw(wild.cut_or_changed(stored[name])))
    read_or_refuse(lambda: read_examples(str(target)), target)
    path.write_bytes(stored[name])


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('[' * wild.DEEP, 'not JSON that can be read: nested too deeply'),
        ('{"a":' * wild.DEEP, 'not JSON that can be read: nested too deeply'),
        ('9' * 5000, 'not JSON that can be read: a number too long'),
        ('{"prompt": "\\ud800"}', r'half a surrogate pair, \\ud800, at character 13'),
        ('{"prompt": "\x01"}', 'not JSON: Invalid control character'),
        (b'{"prompt": "\xff"}', 'not UTF-8: byte 0xff at character 13'),
        (b'{"prompt": "\xed\xa0\x80"}', 'not UTF-8: byte 0xed at character 13'),
        ('{"a": 1}{', 'not JSON: Extra data'),
        ('"just text"', 'expected an object, found str'),
        ('{"prompt": 5, "chosen": "a", "rejected": "b"}', 'prompt: expected text or mess'),
        ('{"prompt": "p", "responses": "ab", "ratings": [1, 2]}', 'responses: expected a'),
        ('{"prompt": "p", "responses": {"a": 1}}', 'responses: expected a list'),
        (
            '{"prompt": "p", "responses": [1, 2], "ratings": [1, 2]}',
            'responses: exp',
        ),
        ('{"prompt": "p", "responses": ["a", "b"], "ratings": [1, true]}', 'rating True'),
        ('{"prompt": "p", "responses": ["a", "b"], "ratings": [1, 1e39]}', 'rating 1e'),
        (
            f'{{"prompt": "p", "responses": ["a", "b"], "ratings": [1, 1{"0" * 400}]}}',
            r'rating 10+\.\.\.0+: expected a finite',
        ),
    ],
)
def test_lines_are_refused_by_number_or_skipped(tmp_path, line, reason):
    path = tmp_path / 'd.jsonl'
    good = json.dumps(RECORDS[0]).encode()
    bad = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(good + b'\n' + bad + b'\n' + good + b'\n')
    with pytest.raises(DataError, match=rf'd\.jsonl:2: {reason}'):
        read_examples(str(path))
    examples, report = read_examples(str(path), bad_lines='skip')
    assert [e.origin for e in examples] == [f'{path}:1', f'{path}:3']
    (skipped,) = report.skipped
    assert re.search(reason, skipped)


def test_a_character_in_two_escapes_is_text(tmp_path):
    path = tmp_path / 'd.jsonl'
    path.write_text('{"prompt": "\\ud83d\\ude00", "completion": "\\\\ud800"}\n')
    (example,), _ = read_examples(str(path))
    assert (example.prompt, example.responses) == ('😀', ('\\ud800',))


def test_lines_are_held_to_a_length(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_LINE', 100)
    path = tmp_path / 'd.jsonl'
    record = {'prompt': 'p', 'completion': ''}
    room = 100 - len(json.dumps(record)) - 1  # the end of the line counts
    path.write_text(json.dumps(record | {'completion': 'a' * room}) + '\n')
    assert len(read_examples(str(path))[0]) == 1
    path.write_text('\n' + json.dumps(record | {'completion': 'a' * (room + 1)}) + '\n')
    for bad_lines in ('error', 'skip'):
        with pytest.raises(DataError, match=r'd\.jsonl:2: a line of more than 100 char'):
            read_examples(str(path), bad_lines=bad_lines)


@pytest.mark.parametrize('name', ['d.jsonl.gz', 'd.json.gz'])
def test_compressed_files_are_held_to_an_expansion(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sources, 'SMALL', 1000)
    record = {'prompt': 'p', 'completion': 'a'}
    path = tmp_path / name

    def write(spaces):
        text = json.dumps(record)
        text = f'[{text}]' if name == 'd.json.gz' else text
        path.write_bytes(gzip.compress(text.encode() + b' \n' * spaces, mtime=0))
        return len(text) + 2 * spaces, path.stat().st_size

    assert write(450)[0] < 1000
    assert len(read_examples(str(path))[0]) == 1
    text, size = write(50_000)
    assert text > 100 * size > 1000
    with pytest.raises(DataError, match=r'100 times its size, which text never does'):
        read_examples(str(path))
    monkeypatch.setattr(sources, 'MAX_EXPANSION', 2 * text // size)
    assert len(read_examples(str(path))[0]) == 1


def test_a_json_list_is_held_to_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, 'MAX_WHOLE', 50)
    path = tmp_path / 'd.json'
    path.write_text('[{"prompt": "p", "completion": "a"}]')
    assert len(read_examples(str(path))[0]) == 1
    path.write_text('[{"prompt": "p", "completion": "a"}]' + ' ' * 50)
    with pytest.raises(DataError, match=r'd\.json: more than 50 characters in'):
        read_examples(str(path))


@pytest.mark.parametrize('source', ['a' * 5000, '~nobody-here/d.jsonl', 'a\0b', './\ud800'])
def test_names_that_no_system_has(source):
    read_or_refuse(lambda: read_examples(source), source[:20], 'no such file', 'neither')


def test_many_ends_of_sequence_take_no_time():
    """Taking them off one by one with a copy each would take minutes."""
    from epa_jax.data.rendering import Renderer
    from epa_jax.types import Example, Role

    example = Example('p', ('w1' + ' </s>' * 300_000 + ' ',), (Role.CHOSEN,), None, 'x')
    assert Renderer(TOKENIZER, DataConfig()).render(example) == ('p', ['w1 '])


def test_nothing_is_unpickled(tmp_path):
    sprung = tmp_path / 'sprung'
    for name in ('d.jsonl', 'd.json', 'd.jsonl.gz', 'd.parquet', 'd.pkl', 'd.npy', 'd.pt'):
        path = tmp_path / name
        content = wild.trap(sprung)
        path.write_bytes(gzip.compress(content) if name.endswith('.gz') else content)
        assert read_or_refuse(lambda path=path: read_examples(str(path)), path) is None
    folder = tmp_path / 'saved'
    datasets.Dataset.from_list(RECORDS[:1]).save_to_disk(str(folder))
    for file in list(folder.iterdir()):
        good = file.read_bytes()
        file.write_bytes(wild.trap(sprung))
        read_or_refuse(lambda: read_examples(str(folder)), folder)
        file.write_bytes(good)
    assert not sprung.exists()
