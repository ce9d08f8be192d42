"""The command that responds to prompts."""

import json

import pytest

from epa_jax import sample
from tests import small_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sample')
    small_run.write(folder)
    (folder / 'prompts.jsonl').write_text('{"prompt": "w1 w2"}\n{"instruction": "w3"}\n')
    return folder


def run(folder, *words):
    sample.main([str(folder / 'model'), '--max_new_tokens', '6', *words])


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_responses_are_printed(folder, capsys):
    run(folder, '--prompt', 'w1 w2', '--prompt', 'w5', '--n', '2')
    captured = capsys.readouterr()
    assert captured.out.count('>>> ') == 2
    assert '>>> w1 w2\n' in captured.out
    assert '4 responses' in captured.err
    assert 'tokens/s' in captured.err


def test_responses_are_written_and_repeat(folder):
    words = ['--prompts', str(folder / 'prompts.jsonl'), '--n', '3', '--out']
    run(folder, *words, str(folder / 'a.jsonl'))
    run(folder, *words, str(folder / 'b.jsonl'), '--rows', '2', '--mesh_tensor', '2')
    run(folder, *words, str(folder / 'c.jsonl'), '--seed', '1')
    first, again, other = (read(folder / f'{name}.jsonl') for name in 'abc')
    assert first == again != other
    assert [row['prompt'] for row in first] == ['w1 w2', 'w3']
    for row in first:
        assert len(row['responses']) == len(row['tokens']) == len(row['finished']) == 3
        assert len(set(row['responses'])) > 1
        for tokens, finished in zip(row['tokens'], row['finished'], strict=True):
            assert finished or tokens == 6


def test_a_text_ends_a_response_and_is_left_out(folder):
    prompt = ['--prompt', 'w1', '--temperature', '0', '--out']
    run(folder, *prompt, str(folder / 'whole.jsonl'))
    (whole,) = read(folder / 'whole.jsonl')
    words = whole['responses'][0].split()
    assert len(words) > 2
    run(folder, *prompt, str(folder / 'cut.jsonl'), '--stop', words[1])
    (cut,) = read(folder / 'cut.jsonl')
    assert cut['responses'][0] == whole['responses'][0].split(words[1])[0]
    assert cut['finished'] == [True]
    assert cut['tokens'][0] <= whole['tokens'][0]


def test_neither_order_nor_company_changes_a_response(folder):
    (folder / 'more.jsonl').write_text(
        '{"prompt": "w9 w8"}\n{"prompt": "w3"}\n{"prompt": "w1 w2"}\n{"prompt": "w3"}\n'
    )
    run(folder, '--prompts', str(folder / 'prompts.jsonl'), '--out', str(folder / 'x'))
    run(folder, '--prompts', str(folder / 'more.jsonl'), '--out', str(folder / 'y'))
    (one, three), more = read(folder / 'x'), read(folder / 'y')
    assert one['responses'] == more[2]['responses']
    assert three['responses'] == more[1]['responses'] != more[3]['responses']


def test_other_tokens_may_end_a_response(folder):
    prompt = ['--prompt', 'w1', '--temperature', '0', '--out', str(folder / 'z')]
    run(folder, *prompt)
    ids = small_run.tokenizer()(read(folder / 'z')[0]['responses'][0])['input_ids']
    config = folder / 'model/generation_config.json'
    text = config.read_text()
    config.write_text(json.dumps(json.loads(text) | {'eos_token_id': [2, ids[1]]}))
    try:
        run(folder, *prompt)
    finally:
        config.write_text(text)
    (found,) = read(folder / 'z')
    assert found['tokens'] == [ids.index(ids[1]) + 1]
    assert found['finished'] == [True]


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['model'], 'ConfigError: nothing to respond to'),
        (['model', '--prompts', 'none.jsonl'], 'DataError: none.jsonl: no such file'),
        (
            ['model', '--prompt', 'w1', '--max_new_tokens', '9', '--top_p', '0'],
            'ConfigError: top_p=0.0',
        ),
        (['model', '--prompt', 'w1', '--stop', ''], 'ConfigError: --stop'),
        (['none', '--prompt', 'w1'], 'FormatError: none: does not exist'),
        (
            ['model', '--prompt', 'w1', '--max_new_tokens', '128'],
            'ConfigError: --prompt: 1',
        ),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    monkeypatch.setattr('sys.argv', ['sample', *words])
    with pytest.raises(SystemExit) as stop:
        sample.run_main()
    assert str(stop.value).startswith(message)
