"""The command that runs tasks of lm-evaluation-harness, here small local ones."""

import json
import math
import sys

import numpy as np
import pytest
import yaml

from epa_jax import evaluate, lm_eval
from epa_jax.comparison.runs import measured, read_run
from epa_jax.config import ConfigError
from tests import small_run

CHOICES = [
    {'query': 'w1 w2', 'choices': ['w3', 'w4 w5'], 'gold': 0},
    {'query': 'w6', 'choices': ['w7 w2 w2', 'w8'], 'gold': 1},
    {'query': 'w9', 'choices': ['w7', 'w8'], 'gold': 1},
    {'query': 'w9 w1', 'choices': ['w3', 'w8 w8 w8'], 'gold': 1},
]
TEXTS = [{'context': f'w{i} w2', 'continuation': f'w3 w{i + 1}'} for i in range(5)]
LABELS = ['4', 'documents', '0-shot']
MEAN = {'aggregation': 'mean', 'higher_is_better': True}
TASKS = {
    'choose': {
        'output_type': 'multiple_choice',
        'doc_to_text': '{{query}}',
        'doc_to_choice': '{{choices}}',
        'doc_to_target': '{{gold}}',
        'metric_list': [{'metric': m, **MEAN} for m in ('acc', 'acc_norm')],
    },
    'complete': {
        'output_type': 'loglikelihood',
        'doc_to_text': '{{context}}',
        'doc_to_target': ' {{continuation}}',
        'metric_list': [
            {'metric': 'perplexity', 'aggregation': 'perplexity'},
            {'metric': 'acc', **MEAN},
        ],
    },
    'roll': {
        'output_type': 'loglikelihood_rolling',
        'doc_to_text': '',
        'doc_to_target': '{{context}} {{continuation}}',
        'metric_list': [{'metric': 'word_perplexity'}],
    },
    'say': {
        'output_type': 'generate_until',
        'doc_to_text': '{{context}}',
        'doc_to_target': '{{continuation}}',
        'generation_kwargs': {'until': ['w40'], 'max_gen_toks': 5},
        'metric_list': [{'metric': 'exact_match', **MEAN}],
    },
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model, its questions, and a YAML file of each task."""
    folder = tmp_path_factory.mktemp('lm_eval')
    small_run.write(folder)
    (folder / 'tasks').mkdir()
    for name, records in (('choose', CHOICES), ('texts', TEXTS)):
        lines = ''.join(json.dumps(record) + '\n' for record in records)
        (folder / f'{name}.jsonl').write_text(lines)
    for name, task in TASKS.items():
        file = folder / ('choose.jsonl' if name == 'choose' else 'texts.jsonl')
        task = task | {
            'task': name,
            'dataset_path': 'json',
            'dataset_kwargs': {
                'data_files': {'test': str(file)},
                'cache_dir': str(folder / 'cache'),
            },
            'test_split': 'test',
            'fewshot_split': 'test',
        }
        (folder / f'tasks/{name}.yaml').write_text(yaml.safe_dump(task))
    return folder


def run(folder, *words, model='model'):
    include = ['--include_path', str(folder / 'tasks')]
    lm_eval.main([str(folder / model), *include, *words])


def results(path):
    return json.loads(path.read_text())


def test_numbers_are_those_of_evaluate(folder, capsys, tmp_path):
    run(folder, '--tasks', 'choose', 'complete', '--out', str(tmp_path / 'a.json'))
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in table if row[:1] == ['choose']] == [
        ['choose', 'acc', '↑'],
        ['choose', 'acc_norm', '↑'],
    ]
    files = [str(folder / f'{name}.jsonl') for name in ('choose', 'texts')]
    evaluate.main([str(folder / 'model'), *files, '--out', str(tmp_path / 'b.json')])
    theirs = results(tmp_path / 'a.json')['results']
    ours = results(tmp_path / 'b.json')['tasks']
    (line,) = [row for row in table if row[:2] == ['choose', 'acc']]
    assert line[3:] == [f'{ours["choose"]["accuracy"]:.4f}', '±', '0.2887', *LABELS]
    for key, name in (('acc', 'accuracy'), ('acc_norm', 'accuracy_per_character')):
        mine = ours['choose'][name], ours['choose'][f'{name}_error']
        found = theirs['choose'][f'{key},none'], theirs['choose'][f'{key}_stderr,none']
        assert found == pytest.approx(mine)
    assert theirs['complete']['acc,none'] == pytest.approx(ours['texts']['accuracy'])
    assert theirs['complete']['perplexity,none'] == pytest.approx(
        ours['texts']['perplexity'], rel=1e-4
    )


def test_texts_are_rolled_and_answers_logged(folder, tmp_path):
    out, details = tmp_path / 'out.json', tmp_path / 'details.jsonl'
    words = ['--out', str(out), '--details', str(details)]
    run(folder, '--tasks', 'roll,say', *words, '--limit', '3', '--mesh_tensor', '2')
    found = results(out)
    assert found['n-samples']['roll'] == {'original': 5, 'effective': 3}
    rows = [json.loads(line) for line in details.read_text().splitlines()]
    assert [row['task'] for row in rows] == ['roll'] * 3 + ['say'] * 3
    totals = [float(row['resps'][0][0]) for row in rows[:3]]
    perplexity = math.exp(-np.sum(totals) / (3 * 4))  # each text has four words
    assert found['results']['roll']['word_perplexity,none'] == pytest.approx(perplexity)
    for row in rows[3:]:
        text = row['resps'][0][0]
        assert 'w40' not in text
        assert len(text.split()) <= 5
    assert found['cut_contexts'] == {'generate_until': 0}


def test_examples_come_before_the_question(folder, tmp_path):
    details = tmp_path / 'details.jsonl'
    words = ['--num_fewshot', '2', '--limit', '1', '--details', str(details)]
    run(folder, '--tasks', 'choose', *words)
    (row,) = [json.loads(line) for line in details.read_text().splitlines()]
    assert row['arguments'][0][0].count('\n\n') == 2
    assert row['arguments'][0][0].endswith('w1 w2')


def test_options_of_generation_and_chat_templates_reach_the_model(folder, tmp_path):
    config = folder / 'model/tokenizer_config.json'
    text, details = config.read_text(), tmp_path / 'details.jsonl'
    template = "{% for m in messages %}{{ m.role + ' w7 ' + m.content }}{% endfor %}"
    config.write_text(json.dumps(json.loads(text) | {'chat_template': template}))
    words = ['--apply_chat_template', '--system_instruction', 'w30', '--limit', '1']
    words += ['--gen_kwargs', 'max_gen_toks=2', '--details', str(details)]
    try:
        run(folder, '--tasks', 'say', *words)
    finally:
        config.write_text(text)
    (row,) = [json.loads(line) for line in details.read_text().splitlines()]
    context, options = row['arguments'][0]
    assert context == 'system w7 w30user w7 w0 w2'
    assert options['max_gen_toks'] == 2
    assert len(row['resps'][0][0].split()) <= 2


def test_results_of_a_run_are_kept_with_it_and_compared(folder):
    run_folder = folder / 'run'
    (run_folder / 'checkpoints').mkdir(parents=True)
    (run_folder / 'export').symlink_to(folder / 'model')
    (run_folder / 'config.json').write_text(json.dumps({'loss.name': 'dpo'}))
    run(folder, '--tasks', 'cho*', model='run')
    found = results(run_folder / 'evals/lm_eval.json')['results']['choose']
    shown = measured(read_run(run_folder))
    accuracy = shown['choose: acc']
    assert accuracy.value == found['acc,none']
    half = 1.96 * found['acc_stderr,none']
    assert accuracy.high - accuracy.low == pytest.approx(2 * half)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (
            ['model', '--tasks', 'choose', '--include_path', 'none'],
            'ConfigError: --include_path: none is no folder',
        ),
        (['none', '--tasks', 'choose'], 'FormatError: none: does not exist'),
        (['model', '--tasks', 'lost'], 'DataError: --tasks lost: the data cannot be'),
        (
            ['model', '--tasks', 'say', '--gen_kwargs', 'num_beams=2'],
            'ConfigError: generation_kwargs num_beams',
        ),
        (
            ['model', '--tasks', 'choose', '--apply_chat_template'],
            'ConfigError: the tokenizer has no chat template',
        ),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    task = yaml.safe_load((folder / 'tasks/choose.yaml').read_text())
    task['task'], files = 'lost', task['dataset_kwargs']['data_files']
    files['test'] = 'nowhere.jsonl'
    (folder / 'tasks/lost.yaml').write_text(yaml.safe_dump(task))
    include = [] if '--include_path' in words else ['--include_path', 'tasks']
    monkeypatch.setattr('sys.argv', ['lm_eval', *words, *include])
    with pytest.raises(SystemExit) as stop:
        lm_eval.run_main()
    assert str(stop.value).startswith(message)


def test_a_group_has_a_line_of_its_own(folder, tmp_path, capsys):
    (folder / 'groups').mkdir()
    task = yaml.safe_load((folder / 'tasks/choose.yaml').read_text()) | {'task': 'again'}
    (folder / 'groups/again.yaml').write_text(yaml.safe_dump(task))
    mean = [{'metric': 'acc', 'weight_by_size': True}]
    group = {'group': 'both', 'task': ['choose', 'again'], 'aggregate_metric_list': mean}
    (folder / 'groups/both.yaml').write_text(yaml.safe_dump(group))
    words = ['--include_path', str(folder / 'groups'), '--out', str(tmp_path / 'out.json')]
    run(folder, '--tasks', 'both', *words)
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines.count(['both', 'acc']) == 1
    assert lines.count(['again', 'acc']) == lines.count(['choose', 'acc']) == 1
    found = results(tmp_path / 'out.json')['results']
    assert found['both']['acc,none'] == found['choose']['acc,none']


ASKED: list[bool] = []  # indices made, with the harness's own tasks or without


class Index:
    """Knows 'mine' in folders given, and 'theirs' with the harness's own."""

    def __init__(self, include_path, include_defaults):
        ASKED.append(include_defaults)
        self.names = ['mine', 'theirs'] if include_defaults else ['mine']

    def match_tasks(self, names):
        return [name for name in names if name in self.names]


@pytest.mark.parametrize(
    ('names', 'asked'), [('mine', [False]), ('mine,theirs', [False, True])]
)
def test_the_harness_s_own_tasks_are_read_only_where_needed(names, asked):
    ASKED.clear()
    args = lm_eval.arguments(['model', '--tasks', names])
    assert lm_eval._find_tasks(args, Index)[1] == names.split(',')
    assert asked == ASKED
    args.tasks = ['mine', 'no_such']
    with pytest.raises(ConfigError, match='--tasks no_such: neither'):
        lm_eval._find_tasks(args, Index)


def test_without_the_harness_the_way_to_get_it_is_said(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, 'lm_eval.tasks', None)
    monkeypatch.setattr('sys.argv', ['lm_eval', str(folder / 'model'), '--tasks', 'choose'])
    with pytest.raises(SystemExit, match='pip install'):
        lm_eval.run_main()
