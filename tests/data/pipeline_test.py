"""Steps of a run: order, draws, resume, processes, and the reference's visits."""

import collections
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from epa_jax.data.mixture import Mixture
from epa_jax.data.negatives import NegativeRule
from epa_jax.data.packing import Layout
from epa_jax.data.pipeline import CHUNK, Pipeline, Visits
from epa_jax.data.tokenise import tokenise
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role
from tests.data.token_examples import random_examples
from tests.data.tokenizers_in_memory import made, text_of

SIZE, PROMPTS = 11, 4
EXAMPLES = random_examples(SIZE)
VISITS = Visits(size=SIZE, prompts=PROMPTS, seed=5, shuffle=True, resample=True)
PIPELINE = Pipeline(EXAMPLES, NegativeRule(5, 2, 3, 'any'), VISITS, (Layout(2, 128, 3, 6),))


def take(pipeline, count):
    steps = Mixture(pipeline).steps()
    return [data.preference for data in itertools.islice(steps, count)]


def keys(step):
    return sorted(int(k) for batch in step for k in batch.keys.ravel() if k >= 0)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('shuffle', [True, False])
def test_every_epoch_visits_every_example_once(shuffle):
    dataset = dataclasses.replace(VISITS, shuffle=shuffle).dataset()
    epochs = [[dataset[e * SIZE + i] for i in range(SIZE)] for e in range(4)]
    for epoch, visits in enumerate(epochs):
        assert sorted(visits) == [(epoch, i) for i in range(SIZE)]
    orders = {tuple(index for _, index in visits) for visits in epochs}
    assert len(orders) == (4 if shuffle else 1)
    assert shuffle or orders == {tuple(range(SIZE))}


def test_the_order_follows_from_the_seed():
    def order(seed):
        dataset = dataclasses.replace(VISITS, seed=seed).dataset()
        return [dataset[i] for i in range(3 * SIZE)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_the_first_draw_is_kept_without_resampling():
    visits = dataclasses.replace(VISITS, resample=False)
    pipeline = dataclasses.replace(PIPELINE, visits=visits)
    assert visits.first(20) == [(0, i) for i in range(SIZE)]
    steps = take(pipeline, 8)
    tokens = collections.defaultdict(set)
    for batch in itertools.chain(*steps):
        for b, g in np.argwhere(batch.keys >= 0):
            where = batch.segments[b] == g + 1
            tokens[int(batch.keys[b, g])].add(batch.tokens[b, where].tobytes())
    assert set(tokens) == set(range(SIZE))
    assert all(len(different) == 1 for different in tokens.values())


def test_negatives_are_drawn_anew_in_every_epoch():
    groups = [[PIPELINE.group((draw, i)) for i in range(SIZE)] for draw in range(2)]
    first, second = ([g.response_ids for g in epoch] for epoch in groups)
    same = [np.array_equal(a[-1], b[-1]) for a, b in zip(first, second, strict=True)]
    assert sum(same) < SIZE / 2


def test_every_step_has_exactly_its_prompts():
    for number, step in enumerate(take(PIPELINE, 9)):
        assert len(keys(step)) == PROMPTS
        visits = [VISITS.dataset()[i] for i in range(4 * number, 4 * number + 4)]
        assert keys(step) == sorted(draw * SIZE + index for draw, index in visits)


def test_prompts_of_a_step_may_exceed_the_examples():
    visits = dataclasses.replace(VISITS, prompts=25)
    (step,) = take(dataclasses.replace(PIPELINE, visits=visits), 1)
    assert keys(step) == list(range(22)) + sorted(keys(step)[22:])
    assert len(keys(step)) == 25


@pytest.mark.parametrize('position', [0, 1, 3, 7])
def test_resume_equals_an_uninterrupted_run(position):
    whole = take(PIPELINE, 10)
    stopped = Mixture(PIPELINE).steps()
    for _ in range(position):
        next(stopped)
    state = json.loads(json.dumps(stopped.get_state()))
    resumed = Mixture(PIPELINE).steps()
    resumed.set_state(state)
    rest = [data.preference for data in itertools.islice(resumed, 10 - position)]
    assert_same(rest, whole[position:])


def test_a_state_of_the_past_rewinds():
    steps = Mixture(PIPELINE).steps()
    next(steps)
    state = steps.get_state()
    expected = [next(steps) for _ in range(3)]
    steps.set_state(state)
    assert_same([next(steps) for _ in range(3)], expected)


def test_every_step_has_the_rows_that_suit_it():
    lengths = (48, 64, 128)
    layouts = tuple(Layout(2, n, 3, 6) for n in lengths)
    steps = take(dataclasses.replace(PIPELINE, layouts=layouts), 12)
    alone = [  # of rows that hold every prompt; some have more than 48 tokens
        take(dataclasses.replace(PIPELINE, layouts=(layout,)), 12) for layout in layouts[1:]
    ]
    met = set()
    for i, step in enumerate(steps):
        (length,) = {batch.tokens.shape[1] for batch in step}
        cells = sum(batch.tokens.size for batch in step)
        for other in alone:
            assert cells <= sum(batch.tokens.size for batch in other[i])
            assert keys(step) == keys(other[i])
        met.add(length)
    assert len(met) > 1


def test_a_pass_over_many_keeps_to_one_shape():
    layouts = tuple(Layout(2, n, 3, 6) for n in (64, 128))
    several = dataclasses.replace(PIPELINE, layouts=layouts)
    batches = list(several.once())
    assert len({batch.tokens.shape for batch in batches}) == 1
    assert keys(batches) == keys(list(PIPELINE.once())) == list(range(SIZE))


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_together_make_the_steps_of_one(processes):
    layouts = tuple(Layout(4, length, 3, 6) for length in (64, 80))
    visits = dataclasses.replace(VISITS, prompts=9)
    data = dataclasses.replace(PIPELINE, layouts=layouts, visits=visits)
    whole = take(data, 8)
    assert len({batch.tokens.shape for step in whole for batch in step}) == 2
    share = 4 // processes
    parts = [
        take(dataclasses.replace(data, row_slice=slice(share * p, share * (p + 1))), 8)
        for p in range(processes)
    ]
    joined = [
        [
            jax.tree.map(lambda *rows: np.concatenate(rows), *batches)
            for batches in zip(*step, strict=True)
        ]
        for step in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


@pytest.mark.parametrize('steps', [1, 3, 9])
def test_the_first_visits_are_those_of_the_steps(steps):
    visited = {key for step in take(PIPELINE, steps) for key in keys(step)}
    groups = [PIPELINE.group(visit) for visit in VISITS.first(steps)]
    assert [group.key for group in groups] == sorted(visited)


def test_one_pass_holds_every_example_once_in_order():
    batches = list(PIPELINE.once())
    assert sorted(keys(batches)) == list(range(SIZE))
    assert_same(batches, list(PIPELINE.once()))


def test_many_groups_are_packed_in_parts():
    groups = [PIPELINE.group((draw, 0)) for draw in range(CHUNK + 3)]
    assert keys(PIPELINE.batches(groups)) == [draw * SIZE for draw in range(CHUNK + 3)]


def test_reference_log_probs_follow_their_prompt():
    cache = np.arange(3 * SIZE * 6, dtype=np.float32).reshape(3 * SIZE, 6)
    pipeline = dataclasses.replace(PIPELINE, ref_logps=cache)
    for batch in itertools.chain(*take(pipeline, 8)):
        real = batch.keys >= 0
        np.testing.assert_array_equal(batch.ref_logps[real], cache[batch.keys[real]])


def test_every_batch_has_one_shape():
    """Another shape would compile the step again."""
    batches = [*itertools.chain(*take(PIPELINE, 8)), *PIPELINE.once()]
    shapes = {tuple((x.shape, x.dtype) for x in jax.tree.leaves(b)) for b in batches}
    assert len(batches) > 8
    assert len(shapes) == 1


@pytest.mark.parametrize('template', ['auto', 'none'])
def test_only_the_last_answer_of_a_conversation_is_scored(template):
    """From messages to scored tokens: no word of the user, no earlier turn."""
    turns = [('user', 'Question 1'), ('assistant', 'Answer 1'), ('user', 'Question 2')]
    talk = tuple(Message(*turn) for turn in turns)
    roles = (Role.CHOSEN, Role.REJECTED)
    texts = [(f'good {i}', f'bad {i}') for i in range(3)]
    tokenizer = made('chatml')
    examples, _ = tokenise(
        [Example(talk, responses, roles, None, 'd:1') for responses in texts],
        tokenizer,
        DataConfig(chat_template=template),
    )
    pipeline = dataclasses.replace(
        PIPELINE,
        examples=examples,
        rule=NegativeRule(0, 1, 0, 'any'),
        visits=dataclasses.replace(VISITS, size=3),
    )
    said = {}
    for batch in pipeline.once():
        for b, g in np.argwhere(batch.keys >= 0):
            for k in range(2):
                scored = batch.score_slots[b] == g * 6 + k
                ids = batch.score_targets[b, scored]
                said[int(batch.keys[b, g]), k] = text_of(tokenizer, ids)
    space = ' ' if template == 'none' else ''
    assert said == {
        (i, k): f'{space}{texts[i][k]}<|im_end|>' for i in range(3) for k in range(2)
    }
