"""Random tokens of given lengths, and the gradient on them."""

import numpy as np
import pytest

from benchmarks import flops, growth, records, synthetic, task
from epa_jax.models.transformer import num_params
from epa_jax.types import Role


@pytest.mark.parametrize(
    ('shape', 'millions'), [('135M', 134.5), ('1B', 1235.8), ('7B', 7241.7)]
)
def test_shapes_have_the_published_sizes(shape, millions):
    assert num_params(synthetic.spec_of(shape)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_real_lengths_are_those_of_the_file():
    lines = synthetic.LENGTHS.read_text().splitlines()[1:4]
    first, second, third = ([int(x) for x in line.split(',')] for line in lines)
    found = synthetic.real_lengths(task.ratio('1:1:2'), 2)
    assert found[0] == synthetic.Lengths(first[0], (*first[1:], second[1], third[2]))
    assert found[1].prompt == second[0]
    with pytest.raises(records.RecordsError, match='pairs'):
        synthetic.real_lengths(task.ratio('1:3:4'), 1)


def test_groups_hold_tokens_of_the_vocabulary_in_their_roles():
    (group,) = synthetic.groups([synthetic.Lengths(7, (3, 2, 5, 1))], vocab=11)
    assert [len(ids) for ids in group.response_ids] == [3, 2, 5, 1]
    assert group.roles.tolist() == [Role.CHOSEN, Role.REJECTED, Role.WEAK, Role.WEAK]
    tokens = np.concatenate([group.prompt_ids, *group.response_ids])
    assert tokens.min() >= 1
    assert tokens.max() < 11


def test_rounds_are_interleaved():
    calls = []
    runs = {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}
    taken = synthetic.interleaved(runs, 2)
    assert calls == ['a', 'b'] * 3
    assert {name: len(seconds) for name, seconds in taken.items()} == {'a': 2, 'b': 2}


def test_growth_measures_each_value_of_an_axis():
    base = growth.Point(n_weak=0, vocab=32, prompt=4, response=3, batch=2)
    (row,) = growth.axis('n_weak', (2,), base, 'tiny', rounds=1)
    assert (row['axis'], row['value'], row['rounds']) == ('n_weak', 2, 1)
    group = task.Group([1] * 4, [[1] * 3] * 4)
    spec = synthetic.spec_of('tiny', 32)
    assert row['needed_gflop'] == pytest.approx(flops.of_groups(spec, [group] * 2) / 1e9)
    assert row['temp_mb'] > 0
    assert row['seconds'] > 0
