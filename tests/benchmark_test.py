"""The command that writes answers for judged benchmarks."""

import json

import pytest

from epa_jax import benchmark, sample
from epa_jax.data.prompts import Prompt
from epa_jax.evals.responding import Response
from tests import small_run

QUESTIONS = [
    {'question_id': 7, 'category': 'math', 'turns': ['w1 w2', 'w3']},
    {'question_id': 8, 'category': 'writing', 'turns': ['w4', 'w5 w6']},
]
SOME = ['--prompts', 'questions.jsonl']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark')
    small_run.write(folder)
    (folder / 'prompts.jsonl').write_text(
        '{"prompt": "w1 w2", "dataset": "koala"}\n'
        '{"instruction": "w3", "output": "left out", "generator": "other"}\n'
        '{"prompt": [{"role": "user", "content": "w4 é"}]}\n'
    )
    (folder / 'questions.jsonl').write_text(
        ''.join(f'{json.dumps(row)}\n' for row in QUESTIONS)
    )
    (folder / 'words.jinja').write_text(
        '{% for m in messages %}{{ m.content }} {% endfor %}'
    )
    return folder


def run(kind, folder, prompts, out, *words):
    where = ['--prompts', str(folder / prompts), '--out', str(folder / out)]
    options = ['--max_new_tokens', '6', *where, *words]
    benchmark.main([kind, str(folder / 'model'), *options])


def test_alpaca_eval_outputs_are_what_sample_says(folder, capsys):
    run('alpaca_eval', folder, 'prompts.jsonl', 'deep/out.json', '--seed', '5')
    assert '2 responses cut off' in capsys.readouterr().err
    rows = json.loads((folder / 'deep/out.json').read_text('utf-8'))
    words = [
        '--prompts',
        str(folder / 'prompts.jsonl'),
        '--out',
        str(folder / 'said.jsonl'),
    ]
    options = ['--max_new_tokens', '6', '--temperature', '0.7', '--seed', '5']
    sample.main([str(folder / 'model'), *words, *options])
    lines = (folder / 'said.jsonl').read_text('utf-8').splitlines()
    said = [json.loads(line)['responses'][0].strip() for line in lines]
    assert rows == [
        {
            'dataset': 'koala',
            'instruction': 'w1 w2',
            'output': said[0],
            'generator': 'model',
        },
        {'instruction': 'w3', 'output': said[1], 'generator': 'model'},
        {'instruction': 'w4 é', 'output': said[2], 'generator': 'model'},
    ]


def test_the_generator_may_be_named(folder):
    words = ['--name', 'epa', '--temperature', '0', '--limit', '1']
    run('alpaca_eval', folder, 'prompts.jsonl', 'named.json', *words)
    (row,) = json.loads((folder / 'named.json').read_text())
    assert row['generator'] == 'epa'


def test_white_space_around_an_output_is_no_part_of_it():
    prompt = Prompt(' p ', 'x:1', {'dataset': 'd', 'id': 3})
    row = benchmark.output(prompt, ' p ', Response('\n a b \n', 2, True), 'epa')
    assert list(row.items()) == [
        ('dataset', 'd'),
        ('instruction', ' p '),
        ('output', 'a b'),
        ('generator', 'epa'),
    ]


def test_a_policy_is_named_by_its_folder_file_and_step(folder):
    (folder / 'smol.v2.gguf').touch()
    assert benchmark.name_of(folder / 'smol.v2.gguf', None) == 'smol.v2'
    assert benchmark.name_of(folder / 'run.1', None) == 'run.1'
    assert benchmark.name_of(folder / 'run.1', 200) == 'run.1_step_200'


def test_mt_bench_answers_are_named_by_their_file(folder, capsys):
    words = ['--choices', '2', '--seed', '1']
    run('mt_bench', folder, 'questions.jsonl', 'answers/epa.jsonl', *words)
    assert 'later turns' not in capsys.readouterr().err
    lines = (folder / 'answers/epa.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row['question_id'] for row in rows] == [7, 8]
    for row in rows:
        assert row['model_id'] == 'epa'
        assert isinstance(row['tstamp'], float)
        assert [choice['index'] for choice in row['choices']] == [0, 1]
        assert all(len(choice['turns']) == 2 for choice in row['choices'])
    run('mt_bench', folder, 'questions.jsonl', 'again/epa.jsonl', *words)
    again = [json.loads(s) for s in (folder / 'again/epa.jsonl').read_text().splitlines()]
    for row, other in zip(rows, again, strict=True):
        assert {**row, 'tstamp': 0} == {**other, 'tstamp': 0}


def test_turns_without_room_are_counted(folder, capsys):
    words = ['--max_new_tokens', '100', '--limit', '1']
    words += ['--chat_template', str(folder / 'words.jinja')]
    run('mt_bench', folder, 'questions.jsonl', 'long.jsonl', *words)
    err = capsys.readouterr().err
    assert '1 later turns had room for less than --max_new_tokens 100; 0 of them' in err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['alpaca_eval', 'model', '--prompts', 'talk.jsonl', '--out', 'o.json'],
            'DataError: talk.jsonl:1: expected text or one message of the user',
        ),
        (
            ['alpaca_eval', 'model', '--prompts', 'prompts.jsonl', '--out', 'o.json'],
            'ConfigError: prompts.jsonl:1: ',
        ),
        (
            ['mt_bench', 'model', *SOME, '--out', 'o.jsonl'],
            'ConfigError: questions.jsonl:1: ',
        ),
        (
            ['mt_bench', 'model', *SOME, '--out', 'o.json'],
            'ConfigError: --out o.json: expected NAME.jsonl',
        ),
        (
            ['mt_bench', 'model', *SOME, '--out', 'o.jsonl', '--choices', '0'],
            'ConfigError: --choices 0: expected 1 or more',
        ),
        (
            ['mt_bench', 'model', '--prompts', 'prompts.jsonl', '--out', 'o.jsonl'],
            'DataError: prompts.jsonl:1: question_id',
        ),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    turns = [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'u'}]
    (folder / 'talk.jsonl').write_text(json.dumps({'prompt': turns}) + '\n')
    monkeypatch.setattr('sys.argv', ['benchmark', *words])
    with pytest.raises(SystemExit) as stop:
        benchmark.run_main()
    assert str(stop.value).startswith(message)
    assert not (folder / 'o.jsonl').exists()
