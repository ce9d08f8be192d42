"""A notice to stop: saved, left with its code, continued by the same command."""

import os
import signal

import pytest

from epa_jax.interrupt import BY_HAND, RUN_AGAIN, Interrupted, Interrupts
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
            assert not interrupts.asked(1)
            send(number)
            assert interrupts.asked(2)
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


def test_a_stopped_run_owes_its_evaluation_and_ends_as_if_it_had_not(tmp_path, monkeypatch):
    from epa_jax import loop as loop_lib
    from epa_jax.train import train

    small_run.write(tmp_path, spec=command.SPEC)
    keys = {'steps': 8, 'log__eval_every': 3, 'export': False}
    whole = train(small_run.config(tmp_path, 'whole', **keys))
    update = loop_lib.Loop._update

    def update_then_stop(self, data):
        if self.step == 5:
            send(signal.SIGTERM)
        return update(self, data)

    cut = small_run.config(tmp_path, 'cut', **keys)
    with monkeypatch.context() as patch:
        patch.setattr(loop_lib.Loop, '_update', update_then_stop)
        with pytest.raises(Interrupted, match='SIGTERM: stopped after step 6'):
            train(cut)
    ended = train(cut)

    def story(result):
        return small_run.computed((result.folder / 'metrics.jsonl').read_text())

    assert story(ended) == story(whole)
    assert [x['step'] for x in story(ended) if 'eval/loss' in x] == [0, 3, 6, 8]


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
