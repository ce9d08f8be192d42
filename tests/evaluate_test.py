"""The command that answers questions."""

import json

import pytest

from epa_jax import evaluate
from tests import small_run

RECORDS = [
    {'query': 'w1 w2', 'choices': ['w3', 'w4 w5'], 'gold': 0},
    {'query': 'w6', 'choices': ['w7', 'w8'], 'gold': 1},
    {'query': 'w9', 'choices': ['w7', 'w8', 'w1'], 'gold': 2},
]


@pytest.fixture
def files(tmp_path):
    small_run.write(tmp_path)
    task = tmp_path / 'task.jsonl'
    task.write_text(''.join(json.dumps(r) + '\n' for r in RECORDS))
    text = tmp_path / 'text.jsonl'
    text.write_text(json.dumps({'context': 'w1 w2', 'continuation': 'w3'}) + '\n')
    return tmp_path


def test_tasks_are_printed_and_written(files, capsys):
    out, details = files / 'out/tasks.json', files / 'out/details.jsonl'
    sources = [str(files / 'task.jsonl'), str(files / 'text.jsonl')]
    options = [
        '--mesh_fsdp',
        '4',
        '--mesh_tensor',
        '2',
        '--out',
        str(out),
        '--details',
        str(details),
    ]
    evaluate.main([str(files / 'model'), *sources, *options])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith('task ')
    assert '3 questions' in lines[0]
    assert 'per character' in lines[0]
    assert 'perplexity' in lines[1]
    found = json.loads(out.read_text())['tasks']
    assert found['task']['questions'] == 3
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    assert [row['task'] for row in rows] == ['task'] * 3 + ['text']
    right = sum(row['correct'] for row in rows[:3]) / 3
    assert found['task']['accuracy'] == pytest.approx(right)
    for row in rows[:3]:
        assert row['correct'] == (row['logps'].index(max(row['logps'])) == row['gold'])


def test_a_run_folder_is_read_from_its_export(files, capsys):
    (files / 'run').mkdir()
    (files / 'model').rename(files / 'run/export')
    evaluate.main([str(files / 'run'), str(files / 'task.jsonl'), '--limit', '2'])
    assert '2 questions' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['nowhere', 'task.jsonl'], 'FormatError: nowhere: does not exist'),
        (['model', 'missing.jsonl'], 'DataError: missing.jsonl: no such file'),
        (['model', 'task.jsonl', '--mesh_tensor', '3'], 'ConfigError: mesh'),
    ],
)
def test_bad_input_is_one_message(files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    monkeypatch.setattr('sys.argv', ['evaluate', *words])
    with pytest.raises(SystemExit) as stop:
        evaluate.run_main()
    assert str(stop.value).startswith(message)
