"""Two processes, one of which is told to stop: both stop at one place, and go on."""

import json
import re
import signal

import pytest

from epa_jax.interrupt import RUN_AGAIN
from tests import small_run
from tests.processes import command

pytestmark = pytest.mark.exhaustive

# JAX's service takes seconds to tell all processes of a notice: the run must last longer
KEYS = ('steps=160', 'data.eval_examples=300', 'log.eval_every=10', 'export=False')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stopped')
    small_run.write(folder, pairs=500, spec=command.SPEC)
    (folder / 'config.py').write_text(command.CONFIG.format(folder=str(folder)))
    return folder


def pod(folder, name, when=None):
    """Outputs of a run's processes; the last gets SIGTERM when the run has come so far."""
    keys = (*KEYS, f'workdir={folder / name}', f'reference.cache_dir={folder / name}_cache')
    processes = command.start_pod(folder, *keys, devices=1)
    try:
        if when is not None:
            command.wait_until(when, processes[0])
            processes[-1].send_signal(signal.SIGTERM)
        ended = [command.finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    expected = 0 if when is None else RUN_AGAIN
    assert [code for code, _ in ended] == [expected] * 2, ended
    return [output for _, output in ended]


def evaluating(run):
    """Whether the heart of a run beats in an evaluation; it beats from then on."""
    path = run / 'heartbeats' / 'process_0.json'
    return json.loads(path.read_text())['phase'] == 'evaluation'


def test_a_pass_and_an_evaluation_that_are_cut_change_nothing(folder):
    run = folder / 'cut'
    outputs = pod(folder, 'cut', (run / 'lock').exists)
    assert all('SIGTERM: stopped outside of training' in text for text in outputs)
    (kept,) = (folder / 'cut_cache').iterdir()
    assert kept.name.endswith('.unfinished')
    outputs = pod(folder, 'cut', lambda: evaluating(run))
    steps = {re.search('SIGTERM: stopped after step (\\d+)', text)[1] for text in outputs}
    assert len(steps) == 1, outputs
    assert [p.name for p in (run / 'checkpoints').iterdir()] == list(steps)
    assert not kept.exists()
    assert f'resumed from step {steps.pop()} ' in pod(folder, 'cut')[0]
    pod(folder, 'whole')
    ours, theirs = (
        small_run.computed((folder / name / 'metrics.jsonl').read_text())
        for name in ('cut', 'whole')
    )
    assert ours == theirs
