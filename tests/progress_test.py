import datetime
import io

from epa_jax.progress import BarProgress, LineProgress, TimeLeft, describe, make_progress

METRICS = {
    'loss': 0.69314,
    'rewards/accuracies': 0.5,
    'tokens_per_second': 12345.6,
    'grad_norm': 3.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_gets_a_line_every_few_steps_and_at_the_end():
    stream = io.StringIO()
    progress = make_progress(10, every=4, stream=stream)
    assert isinstance(progress, LineProgress)
    for step in range(1, 11):
        progress.update(step, METRICS)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.partition('  loss')[0] for line in lines] == [
        'step  4/10',
        'step  8/10',
        'step 10/10',
    ]
    assert 'loss 0.6931  acc 0.500  12,346 tokens/s  left 0:00:00' in lines[-1]


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    progress = make_progress(10, first=3, stream=stream)
    assert isinstance(progress, BarProgress)
    progress.update(4, METRICS)
    progress.close()
    assert '4/10' in stream.getvalue()
    assert '0.6931' in stream.getvalue()


def test_time_left_leaves_out_the_first_step():
    times = iter([100.0, 102.0, 104.0])  # 2 s a step; compilation came before
    left = TimeLeft(13, clock=lambda: next(times))
    assert left.after(10) is None
    assert left.after(11) == datetime.timedelta(seconds=4)
    assert left.after(12) == datetime.timedelta(seconds=2)


def test_metrics_that_are_missing_are_left_out():
    assert describe({'loss': 1.0}, None) == 'loss 1.0000  left ?'
