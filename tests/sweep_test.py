"""Sweeps: what is done is skipped, what fails does not end them."""

import subprocess
import sys

import jax
import pytest

from epa_jax import sweep as sweep_lib
from epa_jax.config import ConfigError, defaults
from epa_jax.sweep import is_done, part_of, planned, sweep
from tests import small_run

GRID = {'loss.beta': [0.1, 0.2], 'seed': [0, 1]}


@pytest.fixture
def config(tmp_path):
    small_run.write(tmp_path, pairs=16)
    config = defaults()
    config.workdir = str(tmp_path / 'sweep')
    config.model.path = str(tmp_path / 'model')
    config.data.train = str(tmp_path / 'pairs.jsonl')
    config.data.eval_examples = 4
    config.data.max_prompt_tokens = config.data.max_response_tokens = 16
    config.reference.cache_dir = str(tmp_path / 'cache')
    config.batch.prompts = 4
    config.steps = 1
    config.loss.name = 'dpo'
    config.export = False
    config.log.tensorboard = False
    config.mesh.data, config.mesh.fsdp = -1, 1
    return config


def test_runs_are_the_combinations_in_folders_of_their_own(config):
    runs = planned(config, GRID)
    assert [(run.loss.beta, run.seed) for run in runs] == [
        (0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1),
    ]  # fmt: skip
    assert [run.workdir for run in runs] == [
        f'{config.workdir}/beta={beta},seed={seed}'
        for beta in (0.1, 0.2)
        for seed in (0, 1)
    ]
    assert config.loss.beta is None  # the configuration itself stays


@pytest.mark.parametrize(
    ('grid', 'message'),
    [
        ({'loss.name': ['dpo', 'nope']}, "run name=nope: .*'nope'"),
        ({'data.n_strong': [1, 0]}, 'run n_strong=0: '),
        ({'optim.lr': [-1.0, 1.0]}, 'run lr=-1.0: optim.lr=-1.0: expected a value from'),
        ({'seed': [0, 'x']}, "run seed=x: seed='x'"),
    ],
)
def test_every_run_is_checked_before_the_first(config, grid, message):
    with pytest.raises(ConfigError, match=message):
        planned(config, grid)


def test_a_sweep_writes_to_local_folders(config):
    config.workdir = 'gs://bucket/sweep'
    with pytest.raises(ConfigError, match=r"workdir='gs://bucket/sweep': a sweep"):
        planned(config, GRID)


def test_parts_are_disjoint_and_together_all(config):
    runs = planned(config, {'seed': list(range(7))})
    parts = [part_of(runs, f'{i}/3') for i in (1, 2, 3)]
    assert sorted(run.seed for part in parts for run in part) == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for text in ('0/3', '4/3', '1', 'a/b', '1/0'):
        with pytest.raises(ConfigError, match=f'--part={text}: expected I/N'):
            part_of(runs, text)


@pytest.mark.exhaustive
def test_done_runs_are_skipped_and_failures_told(config, monkeypatch, capsys):
    """The second of four fails at first; the next sweep does that one alone."""
    runs = planned(config, GRID)
    began, broken = [], {runs[1].workdir}

    def train(run):
        began.append(run.workdir)
        if run.workdir in broken:
            raise ConfigError('broken')
        return real(run)

    real = sweep_lib.train
    monkeypatch.setattr(sweep_lib, 'train', train)
    assert sweep(runs) == [f'{runs[1].workdir}: ConfigError: broken']
    assert began == [run.workdir for run in runs]
    assert [is_done(run) for run in runs] == [True, False, True, True]
    began.clear()
    broken.clear()
    assert sweep(runs) == []
    assert began == [runs[1].workdir]
    lines = shown_by(0, runs, monkeypatch, capsys)
    assert shown_by(1, runs, monkeypatch, capsys) == []
    assert '[1] loss.beta=0.1 (2 seeds)' in lines
    assert '[2] loss.beta=0.2 (2 seeds)' in lines
    config.optim.lr = 1.0
    with pytest.raises(ConfigError, match='the folder holds another run'):
        is_done(planned(config, GRID)[0])


def shown_by(process, runs, monkeypatch, capsys):
    """Lines that a process prints; each asks the first one about every run."""
    asked = []

    def broadcast(value):
        asked.append(value)
        return value

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'process_index', lambda: process)
        patch.setattr(sweep_lib.multihost_utils, 'broadcast_one_to_all', broadcast)
        sweep_lib.show(runs)
    assert len(asked) == len(runs)
    return capsys.readouterr().out.splitlines()


@pytest.mark.exhaustive
def test_the_command(tmp_path, repo_root):
    """Names and checks runs, from the file's grid and from the command line's."""
    command = [sys.executable, '-m', 'epa_jax.sweep', '--dry_run']
    command += ['--config=experiments/quickstart_sweep.py']
    command += [f'--config.workdir={tmp_path}/s']

    def output(*more):
        done = subprocess.run(
            [*command, *more], cwd=repo_root, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout.split(), done.stderr

    code, lines, _ = output('--part=1/2')
    assert code == 0
    assert len(lines) == 6
    assert lines[0] == f'{tmp_path}/s/name=dpo,lr=0.0001,seed=0'
    code, lines, _ = output('--grid=seed=0,1', '--grid=loss.beta=0.5')
    assert lines == [f'{tmp_path}/s/seed=0', f'{tmp_path}/s/seed=1']
    code, _, error = output('--grid=sed=0')
    assert code == 1
    assert error.strip().endswith('sed: no such key; did you mean seed?')
