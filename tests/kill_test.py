"""A run that is killed at any moment ends as one that is left alone, bit for bit."""

import json
import subprocess
import sys

import pytest

from tests import small_run
from tests.processes import command
from tests.processes.killed import EVERY


@pytest.fixture(
    scope='module',
    params=[
        pytest.param(2, marks=pytest.mark.exhaustive),
        pytest.param(30, marks=pytest.mark.endurance),
    ],
    ids='{} kills'.format,
)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    command.write(folder)
    arguments = [str(folder), str(request.param), 'seed']
    done = subprocess.run(
        [sys.executable, '-m', 'tests.processes.killed', *arguments],
        cwd=command.REPO,
        env=command.environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=request.param * 120,
    )
    assert done.returncode == 0, done.stdout + (folder / 'run.log').read_text()
    return folder


def lives(folder):
    return json.loads((folder / 'lives.json').read_text())


def story(folder, name):
    return small_run.computed((folder / name / 'metrics.jsonl').read_text())


def test_the_model_is_that_of_an_uninterrupted_run(folder):
    killed, whole = (
        (folder / name / 'export' / 'model.safetensors').read_bytes()
        for name in ('run', 'whole')
    )
    assert killed == whole
    assert whole != (folder / 'model' / 'model.safetensors').read_bytes()


def test_the_metrics_are_those_of_an_uninterrupted_run(folder):
    assert story(folder, 'run') == story(folder, 'whole')


def test_only_steps_since_the_last_save_are_lost(folder):
    resumed = [
        int(line.split()[3])
        for line in (folder / 'run.log').read_text().splitlines()
        if line.startswith('resumed from step')
    ]
    assert set(resumed) <= {life['saved'][-1] for life in lives(folder) if life['saved']}
    for life in lives(folder):
        # a save waits for the one before it to be complete
        assert life['reached'] - max(life['saved'], default=0) <= 2 * EVERY


def test_killed_saves_leave_nothing_behind(folder):
    assert any(life['unfinished'] for life in lives(folder))
    left = {p.name for p in (folder / 'run').rglob('*')}
    assert not [name for name in left if 'tmp' in name or 'partial' in name]
    names = {p.name for p in (folder / 'run').iterdir()}
    assert names == {p.name for p in (folder / 'whole').iterdir()}
