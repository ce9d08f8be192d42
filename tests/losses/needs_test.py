import pytest

from epa_jax.config import ConfigError
from epa_jax.losses import LOSSES, check_needs, make_loss, needs_ratings


@pytest.mark.parametrize(
    ('name', 'n_strong', 'n_weak', 'mode', 'message'),
    [
        ('dpo', 1, 0, 'none', r"needs a reference.*'cached' or 'in_step', or set"),
        ('simpo + dpo', 1, 0, 'none', r"loss\.name='simpo \+ dpo' needs a reference"),
        ('dpo', 0, 4, 'cached', r'data\.n_strong of at least 1, found 0'),
        ('simpo', 0, 4, 'none', r'data\.n_strong of at least 1'),
        ('epa', 0, 0, 'cached', r'data\.n_strong \+ data\.n_weak of at least 1'),
        ('kto', 1, 0, 'cached', r'data\.n_weak of at least 1, found 0'),
        ('bco', 0, 2, 'cached', r'data\.n_strong of at least 1'),
    ],
)
def test_a_run_that_cannot_feed_the_loss_is_refused(name, n_strong, n_weak, mode, message):
    with pytest.raises(ConfigError, match=message):
        check_needs(
            make_loss(name, {}), n_strong=n_strong, n_weak=n_weak, reference_mode=mode
        )


@pytest.mark.parametrize(
    ('name', 'values', 'n_strong', 'n_weak', 'mode'),
    [
        ('epa', {}, 0, 1, 'cached'),
        ('dpo', {}, 1, 0, 'in_step'),
        ('dpo', {'reference_free': True}, 1, 0, 'none'),
        ('sft', {}, 0, 0, 'none'),
        ('kto', {}, 0, 1, 'cached'),
        ('kto', {'baseline': 'zero'}, 0, 0, 'cached'),
        ('simpo', {}, 1, 0, 'none'),
        ('mpo', {}, 1, 0, 'none'),
    ],
)
def test_a_run_that_can_feed_the_loss_passes(name, values, n_strong, n_weak, mode):
    loss = make_loss(name, values)
    check_needs(loss, n_strong=n_strong, n_weak=n_weak, reference_mode=mode)


def test_a_reference_is_needed_as_soon_as_a_value_asks_for_it():
    loss = make_loss('mpo', {'against': 'reference'})
    with pytest.raises(ConfigError, match='needs a reference'):
        check_needs(loss, n_strong=1, n_weak=0, reference_mode='none')


def test_wpo_needs_a_strong_negative():
    loss = make_loss('epa', {'wpo': True})
    with pytest.raises(ConfigError, match=r'data\.n_strong of at least 1'):
        check_needs(loss, n_strong=0, n_weak=2, reference_mode='cached')


@pytest.mark.parametrize(
    ('name', 'values', 'of_one', 'of_several'),
    [
        ('dpo', {}, False, False),
        ('dpo', {'pairs': 'all'}, False, True),
        ('simpo', {'pairs': 'adjacent'}, False, True),
        ('dpo', {'rating_margin': 0.5}, True, True),
        ('dpo', {'rating_margin': 0.0}, False, False),
        ('pl_dpo', {}, False, True),
        ('infonca', {}, True, True),
        ('infonca', {'rating_temperature': 0.0}, False, False),
        ('rpo_sq', {'pairs': 'all'}, True, True),
        ('dpo + nca', {}, True, True),
        ('epa', {}, False, False),
    ],
)
def test_when_ratings_are_needed(name, values, of_one, of_several):
    loss = make_loss(name, values)
    assert needs_ratings(loss, n_strong=1) == of_one
    assert needs_ratings(loss, n_strong=3) == of_several


def test_no_loss_asks_for_more_than_it_says():
    for name, needs in LOSSES.items():
        check_needs(
            make_loss(name, {}),
            n_strong=max(needs.min_strong, needs.min_negatives - needs.min_weak),
            n_weak=needs.min_weak,
            reference_mode='cached' if needs.needs_reference else 'none',
        )
