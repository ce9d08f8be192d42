"""Steps of several sources: shares, order, resume."""

import dataclasses
import itertools
import json

import jax
import numpy as np

from epa_jax.data.mixture import Mixture, portion
from epa_jax.data.negatives import NegativeRule
from epa_jax.data.packing import Layout
from epa_jax.data.pipeline import Pipeline, Visits
from tests.data.token_examples import example, random_examples

PAIRS = Pipeline(
    random_examples(7),
    NegativeRule(5, 1, 1, 'any'),
    Visits(7, 3, seed=5, shuffle=True, resample=True),
    (Layout(2, 64, 2, 3),),
)


def stream(count, share, seed):
    rng = np.random.default_rng(seed)
    texts = [example([1], [rng.integers(1, 99, 3 + i).tolist()]) for i in range(count)]
    visits = Visits(count, share, seed=5, shuffle=True, resample=False)
    return Pipeline(texts, NegativeRule(5, 0, 0, 'any'), visits, (Layout(2, 64, 4, 1),))


STREAMS = {'sft': stream(5, 2, 1), 'pretrain': stream(9, 4, 2)}
MIXTURE = Mixture(PAIRS, STREAMS)


def take(mixture, count):
    return list(itertools.islice(mixture.steps(), count))


def assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def keys(batches):
    return [int(k) for batch in batches for k in batch.keys.ravel() if k >= 0]


def test_every_step_has_its_share_of_every_source():
    for step in take(MIXTURE, 8):
        assert len(keys(step.preference)) == 3
        assert {n: len(keys(p.batches)) for n, p in step.streams.items()} == {
            'sft': 2,
            'pretrain': 4,
        }
        for batches, tokens in step.streams.values():
            assert sum(int(batch.lengths.sum()) for batch in batches) == tokens


def test_every_text_is_met_once_in_an_epoch():
    seen = [k for step in take(MIXTURE, 9) for k in keys(step.streams['pretrain'].batches)]
    assert sorted(seen) == sorted(list(range(9)) * 4)


def test_preference_data_do_not_depend_on_the_streams():
    alone = [step.preference for step in take(Mixture(PAIRS), 6)]
    assert_same(alone, [step.preference for step in take(MIXTURE, 6)])


def test_all_sources_resume_together():
    whole, steps = take(MIXTURE, 8), MIXTURE.steps()
    for _ in range(3):
        next(steps)
    state = json.loads(json.dumps(steps.get_state()))
    resumed = MIXTURE.steps()
    resumed.set_state(state)
    assert_same(list(itertools.islice(resumed, 5)), whole[3:])


def test_processes_count_the_same_tokens():
    whole = STREAMS['pretrain']
    groups = whole.groups()[0]
    parts = [
        portion(dataclasses.replace(whole, row_slice=slice(p, p + 1)), groups)
        for p in range(2)
    ]
    assert {p.tokens for p in parts} == {portion(whole, groups).tokens}
    rows = zip(*(p.batches for p in parts), strict=True)
    together = [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in rows]
    assert_same(together, portion(whole, groups).batches)
