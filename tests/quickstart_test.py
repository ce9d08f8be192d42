"""The quickstart end to end, at its smallest size."""

import contextlib
import io
import json
import logging
import math
import subprocess
import sys

import absl.logging
import jax
import matplotlib.image
import numpy as np
import pytest

from epa_jax import quickstart
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.quickstart import SMOKE
from epa_jax.world import figure, files, language
from epa_jax.world.measure import Responses, World


@pytest.fixture(scope='module', autouse=True)
def _logging_as_before():
    """The entry point sets up logging for a whole process."""
    names = ('epa_jax', 'epa_jax.loop')
    loggers = [logging.getLogger(name) for name in names]
    before = [(log, log.level, log.propagate, log.handlers[:]) for log in loggers]
    verbosity = absl.logging.get_verbosity()
    yield
    absl.logging.set_verbosity(verbosity)
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers


@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    """The folder of a run, what it printed and what it logged."""
    out, log = io.StringIO(), io.StringIO()
    folder = tmp_path_factory.mktemp('quickstart') / 'with [brackets]'
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(log),
    ):
        patch.setenv('COLUMNS', '80')
        quickstart.main(['--smoke', '--seed=1', f'--out={folder}'])
    return folder, out.getvalue(), log.getvalue()


@pytest.fixture(scope='module')
def results(ran):
    return json.loads((ran[0] / 'results.json').read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_table_and_results_json_hold_the_same_numbers(ran, results):
    shown = ran[1].splitlines()
    names = ['SFT', 'DPO', 'EPA 1:1:2']
    assert [record['policy'] for record in results['outcomes']] == names
    for name, record in zip(names, results['outcomes'], strict=True):
        (row,) = (line for line in shown if line.startswith(f'{name} '))
        found = row.removeprefix(name).replace('±', '').split()
        pearson = record['pearson']
        assert found == [
            f'{record["accuracy"]:.3f}',
            f'{record["margin"]:.3f}',
            '-' if pearson is None else f'{pearson:.3f}',
            f'{record["slope1_error"]:.3f}',
            f'{record["slope1_root"]:.3f}',
            f'{record["kl"]:.2f}',
            f'{record["kl_standard_error"]:.2f}',
            f'{record["reward"]:.2f}',
            f'{record["reward_standard_error"]:.2f}',
        ]


def test_the_reference_is_its_own_zero_and_policies_leave_it(results):
    reference, *policies = results['outcomes']
    assert reference['pearson'] is None
    assert [reference[k] for k in ('accuracy', 'margin', 'kl')] == [0.5, 0, 0]
    for policy in policies:
        assert policy['margin'] != 0
        assert -1 <= policy['pearson'] <= 1
        assert policy['slope1_error'] != reference['slope1_error']
        assert language.LOWEST_REWARD < policy['reward'] < language.HIGHEST_REWARD
    assert policies[0]['margin'] != policies[1]['margin']
    assert results['seed'] == 1


def test_lines_fit_80_columns_and_paths_are_whole(ran):
    folder, shown, _ = ran
    own = [line for line in shown.splitlines() if str(folder) not in line]
    assert max(len(line.rstrip()) for line in own if '.jsonl: ' not in line) <= 80
    for name in ('figure.png', 'results.json'):
        assert f' {folder / name}\n' in shown
        assert (folder / name).is_file()
    for stage in range(1, 6):
        assert f'\n{stage}/5  ' in shown
    assert f'next     {quickstart.NEXT}' in shown


def test_the_log_has_both_evaluations_of_every_run_and_no_more(ran):
    log = ran[2].splitlines()
    evaluations = [line for line in log if line.startswith('step ') and 'eval/loss' in line]
    assert len(evaluations) == 2 * 3
    progress = [line for line in log if 'tokens/s' in line]
    assert sorted(log) == sorted(evaluations + progress)
    start = {line.split('eval/loss ')[1].split(',')[0] for line in evaluations[2::2]}
    assert start == {f'{math.log(2):.4f}', f'{math.log(4):.4f}'}


def test_the_figure_is_a_png_of_the_stated_size(ran):
    path = ran[0] / 'figure.png'
    assert path.read_bytes().startswith(b'\x89PNG\r\n\x1a\n')
    pixels = matplotlib.image.imread(path)
    width, height = (figure.DPI * side for side in figure.INCHES)
    assert pixels.shape[:2] == (height, width)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50


def test_no_prompt_is_on_both_sides(ran):
    folder, train, held_out = ran[0], set(), set()
    for name in ('demonstrations', 'pairs'):
        train |= {r['prompt'] for r in lines(folder / f'{name}.jsonl')}
        held_out |= {
            record['prompt'] for record in lines(folder / f'{name}_held_out.jsonl')
        }
    assert len(held_out) == SMOKE.held_out
    assert len(train) >= SMOKE.demonstrations
    assert not train & held_out


def test_the_notes_count_the_pairs_that_there_are(ran, results):
    pairs = lines(ran[0] / 'pairs_held_out.jsonl')
    assert results['held_out_pairs'] == len(pairs)
    assert f'margin: {len(pairs)} held-out pairs' in ran[1]
    gaps = [r['reward_chosen'] - r['reward_rejected'] for r in pairs]
    right = sum(gap > 0 for gap in gaps) + 0.5 * sum(gap == 0 for gap in gaps)
    assert results['true_reward_accuracy'] == pytest.approx(right / len(gaps))


def test_exports_open_and_score_the_held_out_pairs_as_reported(ran, results):
    folder = ran[0]
    pairs = lines(folder / 'pairs_held_out.jsonl')
    tokenizer = load_tokenizer(folder / 'dpo' / 'export')
    prompts = {prompt.text: prompt for prompt in language.all_prompts()}
    spec = files.model_spec(SMOKE.d_model, SMOKE.n_layers)
    world = World([prompts[r['prompt']] for r in pairs], tokenizer, spec, seed=0)
    texts = [[r['chosen'], r['rejected']] for r in pairs]
    ids = [
        [np.array([*tokenizer(t, add_special_tokens=False).input_ids, 2]) for t in row]
        for row in texts
    ]
    logps = {}
    for name in ('sft', 'dpo', 'epa'):
        read, params = load_model(folder / name / 'export', 'float32')
        assert read == spec
        params = jax.device_put(jax.device_get(params), jax.devices()[0])
        logps[name] = world.logps(params, Responses(ids, np.zeros((len(pairs), 2))))
    for name, record in zip(('dpo', 'epa'), results['outcomes'][1:], strict=True):
        r_theta = SMOKE.beta * (logps[name] - logps['sft'])
        margins = r_theta[:, 0] - r_theta[:, 1]
        assert record['margin'] == pytest.approx(margins.mean(), abs=1e-4)
        assert record['accuracy'] == pytest.approx(np.mean(margins > 0), abs=1e-6)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    for out in (tmp_path, tmp_path / 'thesis.tex'):
        with pytest.raises(SystemExit) as refusal:
            quickstart.main(['--smoke', f'--out={out}'])
        expected = f'ConfigError: --out={out}: not an empty folder; name a new one'
        assert refusal.value.code == expected
    assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_an_empty_folder_will_do(tmp_path):
    assert quickstart.new_folder(str(tmp_path)) == tmp_path
    assert quickstart.new_folder(str(tmp_path / 'a' / 'b')).is_dir()


def test_folders_are_numbered_unless_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [quickstart.new_folder(None) for _ in range(3)]
    assert [str(p) for p in found] == [
        'runs/quickstart',
        'runs/quickstart_2',
        'runs/quickstart_3',
    ]
    assert all(p.is_dir() for p in found)


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed, capsys):
    with pytest.raises(SystemExit):
        quickstart.main([f'--seed={seed}'])
    assert f'--seed={seed}: expected 0 to 4294967295' in capsys.readouterr().err


def test_the_entry_point_starts_without_a_word_of_other_libraries():
    command = [sys.executable, '-m', 'epa_jax.quickstart', '--help']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ''
    assert done.stdout.startswith('usage: python -m epa_jax.quickstart')
    assert '--smoke' in done.stdout
