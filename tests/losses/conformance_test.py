"""What every loss of the table must satisfy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import LOSSES, make_loss
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import (
    forget_one_rating,
    forget_ratings,
    is_own,
    random_table,
    read,
)
from tests.losses.measure import compiled, values, widen
from tests.losses.twins import TWINS, change

EVERY = pytest.mark.parametrize('name', sorted(LOSSES))
SEEDS = st.integers(0, 10_000)
CLOSE = {'rtol': 1e-9, 'atol': 1e-9}  # in float64: what is left is the formula

# Values with which to try each hyperparameter.
VALUES = {
    'beta': st.floats(0.02, 1.5),
    'margin': st.floats(0, 3),
    'weight_strong': st.sampled_from([0.0, 0.3, 2.0]),
    'weight_weak': st.sampled_from([0.0, 0.3, 2.0]),
    'label_smoothing': st.floats(0.01, 0.45),
    'pairs': st.sampled_from(['best_rest', 'all', 'adjacent']),
    'tokens': st.sampled_from(['sum', 'mean']),
    'against': st.sampled_from(['none', 'reference']),
    'gamma': st.floats(-1, 2),
    'alpha': st.sampled_from([0.0, 1e-3, -1.0, 2.0]) | st.floats(0.05, 2),
    'tau': st.floats(0.05, 1),
    'rating_temperature': st.sampled_from([0.0, 1e-4]) | st.floats(0.3, 5),
    'rating_scale': st.floats(0.1, 3),
    'weight_chosen': st.floats(0, 2),
    'weight_rejected': st.floats(0, 2),
    'baseline': st.sampled_from(['weak', 'zero']),
    'shift': st.sampled_from(['running', 'batch', 'none']),
    'nll_weight': st.floats(0, 2),
    'nll_tokens': st.sampled_from(['sum', 'mean']),
}

# Baselines that carry no gradient, though the loss depends on them, are left out where
# the gradient is compared with differences of the loss.
DIFFERENTIABLE = {'kto': (('baseline', 'zero'),), 'bco': (('shift', 'none'),)}

EXTREMES = (0.0, 1.0, 29.0, 31.0, 88.0, 89.0, 1e3, 1e4)


@st.composite
def hyperparameters(draw, name):
    """Some of a loss's hyperparameters; the others stay at their defaults."""
    keys = (
        draw(st.sets(st.sampled_from(sorted(LOSSES[name].allowed))))
        if (LOSSES[name].allowed)
        else []
    )
    return {key: draw(VALUES[key]) for key in sorted(keys)}


def with_junk(table: ResponseTable, where: np.ndarray, junk: float) -> ResponseTable:
    """The table with `junk` for every number at some places."""

    def put(array):
        return np.where(where, junk, array).astype(array.dtype)

    return table.replace(
        logps=put(table.logps),
        ref_logps=put(table.ref_logps),
        ratings=put(table.ratings),
        log_collision=put(table.log_collision),
        log_q=None if table.log_q is None else put(table.log_q),
    )


def extreme_table(seed: int) -> ResponseTable:
    """64 prompts of 4 responses whose log-ratios are from -1e4 to 1e4."""
    rng = np.random.default_rng(seed)
    shape = (64, 4)
    ratios = rng.choice(EXTREMES, shape) * rng.choice([-1, 1], shape)
    table = random_table(seed, *shape)
    return table.replace(
        logps=np.minimum(ratios, 0).astype(np.float32),
        ref_logps=np.minimum(-ratios, 0).astype(np.float32),
        lengths=np.ones(shape, np.int32),
    )


def test_every_loss_has_a_twin_and_every_hyperparameter_values():
    assert set(TWINS) == set(LOSSES)
    assert set(VALUES) == {key for needs in LOSSES.values() for key in needs.allowed}


@EVERY
@given(seed=SEEDS)
def test_equals_its_formula(name, seed):
    table = widen(random_table(seed))
    losses, _ = compiled(name)(table)
    np.testing.assert_allclose(losses, TWINS[name](read(table)), **CLOSE)


@EVERY
@given(seed=SEEDS, data=st.data())
def test_equals_its_formula_whatever_the_hyperparameters(name, seed, data):
    chosen = data.draw(hyperparameters(name))
    table = widen(random_table(seed))
    found = values(make_loss(name, chosen), table)
    np.testing.assert_allclose(found, TWINS[name](read(table), **chosen), **CLOSE)


@EVERY
def test_equals_its_formula_in_float32(name):
    table = random_table(3, prompts=64, responses=4)
    found, _ = compiled(name)(table)
    assert found.shape == (64,)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, TWINS[name](read(table)), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ('name', 'chosen'),
    [(n, {'pairs': p}) for n in LOSSES for p in ('all', 'adjacent')
     if 'pairs' in LOSSES[n].allowed and LOSSES[n].ratings != 'always']
    + [('pl_dpo', {}), ('infonca', {'rating_temperature': 0.0}),
       ('nca', {'rating_temperature': 0.0}), ('epa', {}), ('kto', {})],
)  # fmt: skip
def test_unknown_ratings_leave_the_pairs_of_the_roles(name, chosen):
    table = forget_one_rating(forget_ratings(random_table(4), slice(0, 3)), 4)
    found = values(make_loss(name, chosen), widen(table))
    np.testing.assert_allclose(found, TWINS[name](read(table), **chosen), **CLOSE)


@EVERY
def test_gradients_equal_differences_of_the_formula(name):
    fixed = DIFFERENTIABLE.get(name, ())
    table = widen(random_table(7, scale=5.0))
    _, gradients = compiled(name, fixed)(table)

    def difference(key, index):
        around = []
        for step in (1e-4, -1e-4):
            moved = getattr(table, key).copy()
            moved[index] += step
            prompts = read(table.replace(**{key: moved}))
            around.append(sum(TWINS[name](prompts, **dict(fixed))))
        return (around[0] - around[1]) / 2e-4

    for key, gradient in zip(('logps', 'ref_logps'), gradients, strict=True):
        for index in np.ndindex(gradient.shape):
            expected = difference(key, index)
            np.testing.assert_allclose(gradient[index], expected, rtol=1e-5, atol=1e-6)


@EVERY
@given(seed=SEEDS)
def test_the_order_of_prompts_and_of_responses_does_not_matter(name, seed):
    table = widen(random_table(seed, log_q=name == 'epa'))
    rng = np.random.default_rng(seed)
    order = np.ix_(rng.permutation(6), rng.permutation(5))
    losses, gradients = compiled(name)(table)
    permuted = table.replace(
        **{key: a[order] for key, a in vars(table).items() if a is not None}
    )
    other_losses, others = compiled(name)(permuted)
    np.testing.assert_allclose(other_losses, losses[order[0][:, 0]], **CLOSE)
    for gradient, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(other, gradient[order], **CLOSE)


@EVERY
@pytest.mark.parametrize('junk', [np.inf, -np.inf, np.nan])
def test_padding_columns_change_nothing(name, junk):
    table = random_table(11, log_q=name == 'epa')
    roles = table.roles.copy()
    roles[:, 3] = np.where(roles[:, 3] == Role.WEAK, Role.PAD, roles[:, 3])
    padding = roles == Role.PAD
    assert padding.sum() >= 5
    table = widen(table.replace(roles=roles))
    losses, gradients = compiled(name)(table)
    junk_losses, junk_gradients = compiled(name)(with_junk(table, padding, junk))
    np.testing.assert_array_equal(junk_losses, losses)
    for gradient, other in zip(gradients, junk_gradients, strict=True):
        np.testing.assert_array_equal(other, gradient)
        np.testing.assert_array_equal(other[padding], 0)


@EVERY
@pytest.mark.parametrize('junk', [-30.0, np.inf, np.nan])
def test_prompt_without_chosen_gives_zero_and_touches_no_other(name, junk):
    table = widen(random_table(13))
    roles = table.roles.copy()
    roles[2] = [Role.REJECTED, Role.WEAK, Role.PAD, Role.REJECTED, Role.WEAK]
    there = np.broadcast_to(np.arange(6)[:, None] == 2, roles.shape)
    losses, gradients = compiled(name)(with_junk(table.replace(roles=roles), there, junk))
    assert losses[2] == 0
    without = TWINS[name]([p for n, p in enumerate(read(table)) if n != 2])
    np.testing.assert_allclose(np.delete(losses, 2), without, **CLOSE)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[2], 0)
        assert np.all(np.isfinite(gradient))


@EVERY
def test_a_table_of_padding_only_gives_zeros(name):
    table = random_table(14)
    table = widen(table.replace(roles=np.zeros_like(table.roles)))
    losses, gradients = compiled(name)(with_junk(table, table.roles == Role.PAD, np.nan))
    np.testing.assert_array_equal(losses, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@EVERY
def test_only_the_responses_it_is_about_have_a_gradient(name):
    table = widen(random_table(15))
    _, gradients = compiled(name)(table)
    own = is_own(table.roles)
    uses_weak = name in ('epa', 'ipm')
    for gradient in gradients:
        assert np.any(gradient[table.roles == Role.WEAK]) == (uses_weak and own.any())


@EVERY
def test_reference_is_read_only_if_needed(name):
    _, (_, by_reference) = compiled(name)(widen(random_table(15)))
    assert np.any(by_reference) == LOSSES[name].needs_reference


@EVERY
@pytest.mark.parametrize('seed', [0, 1])
def test_extreme_log_ratios_stay_finite(name, seed):
    table = extreme_table(seed)
    losses, gradients = compiled(name)(table)
    prompts = read(table)
    if name == 'orpo':  # whose odds are infinite at probability 1
        prompts = change(prompts, lambda y, _: y._replace(p=min(y.p, -(2.0**-24))))
    np.testing.assert_allclose(losses, TWINS[name](prompts), rtol=2e-5, atol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize('name', sorted(n for n in LOSSES if LOSSES[n].differences_only))
@given(seed=SEEDS)
def test_what_all_log_ratios_of_a_prompt_share_does_not_matter(name, seed):
    table = widen(random_table(seed))
    share = np.random.default_rng(seed).normal(0, 30, (6, 1))
    losses, gradients = compiled(name)(table)
    moved_losses, moved_gradients = compiled(name)(table.replace(logps=table.logps + share))
    np.testing.assert_allclose(moved_losses, losses, **CLOSE)
    np.testing.assert_allclose(moved_gradients, gradients, **CLOSE)


@EVERY
def test_without_a_reference_it_works_or_says_so(name):
    table = widen(random_table(19))
    loss = make_loss(name, {})
    if loss.needs_reference:
        with pytest.raises(ValueError, match=r"reference\.mode to 'cached' or 'in_step'"):
            loss.fn(table.replace(ref_logps=None))
    else:
        found = values(loss, table.replace(ref_logps=None))
        np.testing.assert_array_equal(found, values(loss, table))


@EVERY
def test_without_ratings_it_works_or_says_so(name):
    table = widen(random_table(20))
    loss = make_loss(name, {})
    if LOSSES[name].ratings == 'always':
        with pytest.raises(ValueError, match=r'needs ratings and the table has none; use'):
            loss.fn(table.replace(ratings=None))
    else:
        found = values(loss, table.replace(ratings=None))
        np.testing.assert_array_equal(found, values(loss, forget_ratings(table)))


@EVERY
@pytest.mark.parametrize('key', ['logps', 'ref_logps', 'lengths', 'roles', 'ratings'])
def test_an_array_of_another_shape_is_refused(name, key):
    table = random_table(21)
    with pytest.raises(ValueError, match=r'one shape \[N, K\]'):
        make_loss(name, {}).fn(table.replace(**{key: getattr(table, key)[:, :1]}))
