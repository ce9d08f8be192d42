"""Ratios and the file of steps."""

import pytest

from benchmarks import task

STEPS = [
    [task.Group([1, 2], [[3], [4, 5]]), task.Group([6], [[7, 8], [9]])],
    [task.Group([2], [[3], [4]])],
]


@pytest.mark.parametrize(
    ('text', 'strong', 'weak', 'loss'),
    [('1:1', 1, 0, 'dpo'), ('1:1:2', 1, 2, 'epa'), ('1:3:4', 3, 4, 'epa')],
)
def test_ratio(text, strong, weak, loss):
    found = task.ratio(text)
    assert (found.strong, found.weak, found.loss) == (strong, weak, loss)


@pytest.mark.parametrize('text', ['', '1', '2:1', '1:a', '1:1:1:1', '1:-1'])
def test_other_ratios_are_refused(text):
    with pytest.raises(task.TaskError, match='expected 1:STRONG'):
        task.ratio(text)


def test_steps_survive_their_file(tmp_path):
    path = tmp_path / 'steps.jsonl'
    task.write_steps(path, STEPS)
    assert task.read_steps(path) == STEPS
    path.write_text('')
    with pytest.raises(task.TaskError, match='no steps'):
        task.read_steps(path)
    with pytest.raises(task.TaskError, match=r'benchmarks\.workload'):
        task.read_steps(tmp_path / 'missing.jsonl')


def test_pairs_hold_chosen_then_rejected():
    assert task.pairs(STEPS[1]) == [
        {'prompt_ids': [2], 'chosen_ids': [3], 'rejected_ids': [4]}
    ]
    with pytest.raises(task.TaskError, match='pairs alone'):
        task.pairs([task.Group([1], [[2], [3], [4]])])
