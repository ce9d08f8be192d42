"""Run folders with damaged files: resumed, compared and watched, or refused by file."""

import json
import shutil

import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.comparison.runs import measured, read_run
from epa_jax.config import flatten
from epa_jax.heartbeat import Heart
from epa_jax.policy import base_model
from epa_jax.run_folder import open_run_folder
from epa_jax.schema import LogConfig
from epa_jax.watch import Watcher
from epa_jax.writers import open_writers, read_evaluations
from tests import small_run
from tests.hostile import wild
from tests.hostile.wild import read_or_refuse

METRICS = [
    {'step': 0, 'eval/loss': 1.0, 'eval/rewards/accuracies': 0.5},
    {'step': 1, 'loss': 1.0, 'lr': None},
    {'step': 2, 'loss': 0.5, 'eval/loss': 0.7},
]


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A run folder without its checkpoints."""
    parent = tmp_path_factory.mktemp('runs')
    run = small_run.config(parent, 'good')
    folder = open_run_folder(run)
    folder.start()
    lines = ''.join(json.dumps(line) + '\n' for line in METRICS)
    (folder.path / 'metrics.jsonl').write_text(lines)
    evaluations = {'eval_first': METRICS[0], 'eval_last': METRICS[2]}
    summary = {'steps': 2, 'loss': 'epa', 'seconds': 1.5} | evaluations
    folder.write_summary(summary)
    folder.write_data_report({'held_out': {'examples': 8}})
    Heart(folder.path, 2).beat(1, 'step')
    return run, folder.path


def use(run, path):
    """All that reads the files of a run folder."""
    names = [file.name for file in path.rglob('*.json*')]
    read_or_refuse(lambda: measured(read_run(path)), path, *names)
    read_or_refuse(lambda: base_model(path), path)
    read_or_refuse(lambda: Watcher(path, 60.0).look(), path)
    read_or_refuse(lambda: open_run_folder(run).start(), path)
    log = LogConfig(tensorboard=False)
    for step in (None, 1):
        open_writers(path, log, config=flatten(run), restored_step=step).close()
        read_evaluations(path / 'metrics.jsonl')


def test_the_folder_is_good_before_it_is_damaged(good):
    run, path = good
    assert read_run(path).metrics == METRICS
    open_run_folder(run)


@wild.examples(120)
@hypothesis.given(st.data())
def test_damaged_files(good, tmp_path_factory, data):
    run, path = good
    copy = tmp_path_factory.mktemp('copies') / 'run'
    shutil.copytree(path, copy)
    run = small_run.changed(run, workdir=str(copy))
    names = sorted(str(p.relative_to(copy)) for p in copy.rglob('*.json*'))
    assert len(names) == 6
    file = copy / data.draw(st.sampled_from(names))
    content = file.read_bytes()
    if data.draw(st.booleans()):
        file.write_bytes(data.draw(wild.cut_or_changed(content)))
    else:
        lines = (
            [json.loads(line) for line in content.splitlines()]
            if file.suffix == ('.jsonl')
            else [json.loads(content)]
        )
        place = data.draw(st.integers(0, len(lines) - 1))
        lines[place] = data.draw(wild.damaged(lines[place]))
        file.write_text(''.join(wild.dumps(line) + '\n' for line in lines))
    use(run, copy)


def test_deep_files(good, tmp_path):
    run, path = good
    for name in ('config.json', 'environment.json', 'summary.json', 'metrics.jsonl'):
        copy = tmp_path / name / 'run'
        shutil.copytree(path, copy)
        (copy / name).write_text('[' * wild.DEEP + '\n')
        use(small_run.changed(run, workdir=str(copy)), copy)
