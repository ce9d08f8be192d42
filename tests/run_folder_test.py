import dataclasses
import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from epa_jax.config import ConfigError, flatten
from epa_jax.loss_config import LossConfig
from epa_jax.run_folder import code_version, open_run_folder, write_json
from epa_jax.schema import CheckpointConfig, DataConfig, LogConfig, RunConfig


@pytest.fixture
def run(tmp_path):
    return RunConfig(workdir=str(tmp_path / 'runs' / 'a'), data=DataConfig(train='x.jsonl'))


def begin(run):
    folder = open_run_folder(run)
    folder.start()
    return folder


def read(folder, name):
    return json.loads((folder.path / name).read_text())


def test_config_json_is_the_resolved_configuration(run):
    folder = begin(run)
    assert read(folder, 'config.json') == flatten(run)
    assert read(folder, 'config.json')['optim.lr'] == 5e-7
    assert read(folder, 'config.json')['loss.beta'] is None


def test_environment_lists_every_start_without_variables(run, monkeypatch):
    monkeypatch.setenv('SOME_API_TOKEN', 'secret-value')
    begin(run)
    folder = begin(run)
    starts = read(folder, 'environment.json')
    assert len(starts) == 2
    assert starts[0]['packages']['jax'] == jax.__version__
    assert starts[0]['packages']['numpy'] == np.__version__
    assert starts[0]['device_count'] == jax.device_count()
    assert 'secret-value' not in (folder.path / 'environment.json').read_text()


def test_resuming_with_another_configuration_names_the_keys(run):
    begin(run)
    other = dataclasses.replace(
        run, seed=3, loss=LossConfig(name='dpo', beta=0.2), log=LogConfig(every=9)
    )
    with pytest.raises(ConfigError) as error:
        begin(other)
    message = str(error.value)
    assert 'seed: 0 there, 3 here' in message
    assert "loss.name: 'epa' there, 'dpo' here" in message
    assert 'loss.beta: None there, 0.2 here' in message
    assert 'log.every' not in message
    assert read(begin(run), 'config.json')['seed'] == 0


def test_what_does_not_change_the_training_may_change(run):
    begin(run)
    other = dataclasses.replace(run, log=LogConfig(every=9), max_bad_steps=1)
    assert read(begin(other), 'config.json')['log.every'] == 9


def test_an_old_run_is_not_overwritten_without_resume(run):
    begin(run)
    fresh = dataclasses.replace(run, checkpoint=CheckpointConfig(resume=False))
    with pytest.raises(ConfigError, match='already holds a run'):
        begin(fresh)


def test_a_folder_without_a_run_is_used(run):
    path = pathlib.Path(run.workdir)
    path.mkdir(parents=True)
    (path / 'notes.txt').write_text('mine')
    folder = begin(dataclasses.replace(run, checkpoint=CheckpointConfig()))
    assert (folder.path / 'notes.txt').read_text() == 'mine'
    assert (folder.path / 'config.json').exists()


def test_a_damaged_config_is_named(run):
    folder = begin(run)
    (folder.path / 'config.json').write_text('{"seed":')
    with pytest.raises(ConfigError, match=r'config\.json: cannot be read .not JSON'):
        begin(run)


def test_reports_are_strict_json(run):
    folder = begin(run)
    folder.write_data_report({'read': 3, 'dropped': {'overlong': 1}})
    folder.write_summary({'loss': float('nan'), 'best': (1.0, float('inf')), 'step': 4})
    assert read(folder, 'data_report.json') == {'read': 3, 'dropped': {'overlong': 1}}
    assert read(folder, 'summary.json') == {'loss': None, 'best': [1.0, None], 'step': 4}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, {'a': 1})
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert json.loads(path.read_text()) == {'a': 1}
    assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_code_version_is_that_of_the_repository_that_tracks_the_file(tmp_path):
    def git(*args):
        command = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b']
        return subprocess.run(
            [*command, *args], check=True, capture_output=True, text=True
        ).stdout.strip()

    tracked, installed = tmp_path / 'tracked.py', tmp_path / 'installed.py'
    tracked.write_text('a = 1\n')
    git('init', '-q')
    assert code_version(tracked) is None
    git('add', 'tracked.py')
    git('commit', '-q', '-m', 'First')
    assert code_version(tracked) == {'commit': git('rev-parse', 'HEAD'), 'dirty': False}
    installed.write_text('b = 1\n')
    assert code_version(installed) is None
    assert code_version(tracked)['dirty'] is True
