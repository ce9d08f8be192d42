"""Random tokens of given lengths, and the gradient on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import growth, records, synthetic, task
from epa_jax.frozen import NOTHING
from epa_jax.models.transformer import Compute, num_params
from epa_jax.types import Role
from tests import tiny


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


def test_the_timed_gradient_is_the_objective_s():
    ratio = task.Ratio(1, 0)
    step = synthetic.groups([synthetic.Lengths(4, (3, 2))] * 3, tiny.SPEC.vocab_size)
    goal = synthetic.objective(tiny.SPEC, ratio, Compute(logprob_chunk=8))
    found = synthetic.gradient(goal, tiny.params(), synthetic.pack(step))
    found.run()
    assert found.temp_bytes > 0
    (batch,) = (jax.tree.map(jnp.asarray, b) for b in synthetic.pack(step))
    prompts = goal.gradients(tiny.params(), batch, NOTHING).prompts
    assert float(prompts) == 3


def test_rounds_are_interleaved():
    calls = []
    runs = {'a': lambda: calls.append('a'), 'b': lambda: calls.append('b')}
    taken = synthetic.interleaved(runs, 2)
    assert calls == ['a', 'b'] * 3
    assert {name: len(seconds) for name, seconds in taken.items()} == {'a': 2, 'b': 2}


def test_growth_has_a_row_for_each_value():
    base = growth.Point(n_weak=0, vocab=32, prompt=4, response=3, batch=2)
    rows = growth.axis('n_weak', (0, 2), base, 'tiny', rounds=1)
    assert [row['value'] for row in rows] == [0, 2]
    assert rows[1]['needed_gflop'] > rows[0]['needed_gflop'] > 0
    assert all(row['seconds'] > 0 for row in rows)
