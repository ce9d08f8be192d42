"""A notice to stop: saved, left with its code, continued by the same command."""

import dataclasses
import os
import signal

import pytest

from epa_jax import loop as loop_lib
from epa_jax.interrupt import BY_HAND, RUN_AGAIN, Interrupted, Interrupts
from epa_jax.loop import Loop
from epa_jax.train import train
from tests import small_run
from tests.processes import command


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, RUN_AGAIN), (signal.SIGINT, BY_HAND)]
)
def test_a_notice_waits_for_the_step_while_deferred(number, code, capfd):
    before = signal.getsignal(number)

    def train():
        with interrupts.deferred():
            assert not interrupts.asked()
            send(number)
            assert interrupts.asked()
            raise interrupts.stopped(2, 'runs/x')

    with Interrupts() as interrupts:
        with pytest.raises(Interrupted) as info:
            train()
        assert 'saving after this step' in capfd.readouterr().err
    assert signal.getsignal(number) is before
    assert info.value.code == code
    message = 'stopped after step 2, which runs/x holds; the same command'
    assert message in str(info.value)


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, RUN_AGAIN), (signal.SIGINT, BY_HAND)]
)
def test_a_notice_outside_of_training_leaves_at_once(number, code):
    with Interrupts(), pytest.raises(Interrupted, match='outside of training') as info:
        send(number)
    assert not isinstance(info.value, Exception)  # which code that reads files catches
    assert info.value.code == code


def test_a_notice_in_the_last_step_leaves_after_it():
    """Nobody asks then; the export, which may take long, is for the next start."""
    done = []

    def train():
        with interrupts.deferred():
            send(signal.SIGTERM)
            done.append('the last step')
        done.append('the export')

    with Interrupts() as interrupts:
        with pytest.raises(Interrupted, match='outside of training') as info:
            train()
        assert info.value.code == RUN_AGAIN
    assert done == ['the last step']


def test_the_codes_are_those_documented():
    assert (RUN_AGAIN, BY_HAND) == (os.EX_TEMPFAIL, 130)


def test_only_a_second_control_c_stops_at_once():
    def train():
        with interrupts.deferred():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            send(signal.SIGINT)

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        train()


STORY = {
    'steps': 8,
    'log__eval_every': 3,
    'export': False,
    'data__eval_examples': 100,  # several batches
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('stopped')
    small_run.write(folder, pairs=132, spec=command.SPEC)
    return folder


@pytest.fixture(scope='module')
def whole(folder):
    """The run that nobody stops."""
    return train(small_run.config(folder, 'whole', **STORY))


def assert_the_same_story(result, expected):
    ours, theirs = (
        small_run.computed((each.folder / 'metrics.jsonl').read_text())
        for each in (result, expected)
    )
    assert ours == theirs
    assert [x['step'] for x in ours if 'eval/loss' in x] == [0, 3, 6, 8]


@pytest.mark.parametrize('step', [6, 8])
def test_a_stopped_run_owes_its_evaluation_and_ends_as_if_it_had_not(
    folder, whole, monkeypatch, step
):
    update = Loop._update

    def update_then_stop(loop, data):
        if loop.step == step - 1:
            send(signal.SIGTERM)
        return update(loop, data)

    run = small_run.config(folder, f'cut{step}', **STORY)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, '_update', update_then_stop)
        with pytest.raises(Interrupted, match=f'SIGTERM: stopped after step {step},'):
            train(run)
    assert_the_same_story(train(run), whole)


@pytest.mark.parametrize('step', [0, 3, 8])
def test_an_evaluation_is_left_between_its_batches_and_owed(
    folder, whole, monkeypatch, step
):
    """A notice while its second batch of several is placed: no third one is."""
    loops, placed = [], []
    original = loop_lib.evaluate

    def evaluate(programs, *args):
        if loops[-1].step != step or placed:  # at the first start alone
            return original(programs, *args)

        def place(batch):
            placed.append(batch)
            if len(placed) == 2:
                send(signal.SIGTERM)
            return programs.place(batch)

        return original(dataclasses.replace(programs, place=place), *args)

    monkeypatch.setattr(loop_lib, 'evaluate', evaluate)
    measure = Loop._measure
    monkeypatch.setattr(Loop, '_measure', lambda x: loops.append(x) or measure(x))
    run = small_run.config(folder, f'evaluating{step}', **STORY)
    with pytest.raises(Interrupted, match=f'stopped after step {step}, which') as info:
        train(run)
    assert info.value.code == RUN_AGAIN
    whole_pass = list(loops[-1].job.batches.held_out.once())
    assert len(placed) == 2 < len(whole_pass)
    assert_the_same_story(train(run), whole)
    if step == STORY['steps']:  # which is not saved again
        assert_the_same_story(train(run), whole)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, RUN_AGAIN), (signal.SIGINT, BY_HAND)]
)
def test_the_command_saves_and_leaves_and_goes_on(tmp_path, number, code):
    command.write(tmp_path)
    keys = ('steps=400', 'export=False')
    metrics = tmp_path / 'run' / 'metrics.jsonl'
    process = command.start(tmp_path, *keys)
    command.wait_until(
        lambda: metrics.exists() and '"step": 3,' in metrics.read_text(), process
    )
    process.send_signal(number)
    found, output = command.finish(process, timeout=60)
    assert found == code, output
    assert f'{signal.Signals(number).name}: stopped after step' in output
    assert 'Traceback' not in output
    (step,) = (int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir())
    assert f'stopped after step {step}, which' in output
    process = command.start(tmp_path, *keys)
    end = f'"step": {step + 1},'
    command.wait_until(lambda: end in metrics.read_text(), process)
    process.kill()
    assert f'resumed from step {step}' in process.communicate()[0]
