"""A run that moves between machines, and that loses one of its processes."""

import re
import signal
import time

import numpy as np
import pytest
import safetensors.numpy

from epa_jax.interrupt import RUN_AGAIN
from tests import small_run
from tests.processes import command

pytestmark = pytest.mark.endurance

KEYS = ('steps=150', 'checkpoint.keep_last=9', 'log.eval_every=40', 'batch.prompts=6')
HEARTBEAT = 10  # seconds


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pods')
    command.write(folder)
    return folder


def lines(run):
    file = run / 'metrics.jsonl'
    return file.read_text().splitlines() if file.exists() else []


def stop_after(run, processes, steps, number=signal.SIGTERM):
    """Signals the last process some steps on; (code, output) of each."""
    target = len(lines(run)) + steps
    command.wait_until(lambda: len(lines(run)) >= target, processes[0])
    processes[-1].send_signal(number)
    return [command.finish(process, timeout=120) for process in processes]


def saved(run):
    return {int(p.name) for p in (run / 'checkpoints').iterdir()}


@pytest.fixture(scope='module')
def travelled(folder):
    """1 x 8 devices, then 2 x 4, then 1 x 2; what each start printed."""
    run, outputs = folder / 'travelled', []
    keys = (*KEYS, f'workdir={run}')
    ((code, output),) = stop_after(run, [command.start(folder, *keys, devices=8)], 10)
    assert code == RUN_AGAIN, output
    outputs.append(output)
    ended = stop_after(run, command.start_pod(folder, *keys), 10)
    assert [code for code, _ in ended] == [RUN_AGAIN] * 2, ended
    outputs += [output for _, output in ended]
    code, output = command.finish(command.start(folder, *keys, devices=2))
    assert code == 0, output
    return run, [*outputs, output]


@pytest.fixture(scope='module')
def stayed(folder):
    run = folder / 'stayed'
    process = command.start(folder, *KEYS, f'workdir={run}', devices=8)
    code, output = command.finish(process)
    assert code == 0, output
    return run


def test_all_processes_stop_at_one_step_and_the_next_start_goes_on(travelled):
    run, outputs = travelled
    stops = [int(re.search('stopped after step (\\d+)', text)[1]) for text in outputs[:3]]
    assert stops[1] == stops[2]
    assert 0 < stops[0] < stops[1] < 150
    assert saved(run) == {stops[0], stops[1], 150}
    for stop, output in ((stops[0], outputs[1]), (stops[1], outputs[3])):
        assert f'resumed from step {stop} ' in output


def test_what_is_trained_does_not_depend_on_the_machines(travelled, stayed):
    """Losses of every step, so the order of the data too, evaluations and weights."""
    run, _ = travelled
    ours, theirs = (small_run.computed('\n'.join(lines(f))) for f in (run, stayed))
    assert [line['step'] for line in ours] == [line['step'] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b)
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3, atol=1e-4)
    ours, theirs = (
        safetensors.numpy.load_file(f / 'export' / 'model.safetensors')
        for f in (run, stayed)
    )
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_ends_the_others(folder, number):
    run = folder / number.name
    keys = ('steps=400', 'export=False', f'workdir={run}')
    first, last = command.start_pod(
        folder, f'--heartbeat_seconds={HEARTBEAT}', *keys, devices=1
    )
    command.wait_until(lambda: len(lines(run)) >= 5, first)
    last.send_signal(number)
    began = time.monotonic()
    try:
        code, output = command.finish(first, timeout=6 * HEARTBEAT)
    finally:
        last.kill()
        last.communicate()
    assert time.monotonic() - began < 6 * HEARTBEAT
    assert code in (RUN_AGAIN, -signal.SIGABRT), output  # whoever notices first
    assert re.search('another (process is gone|task died)', output)
