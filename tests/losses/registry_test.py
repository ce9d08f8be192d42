import dataclasses
import inspect
import math

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.loss_config import LossConfig
from epa_jax.losses import LOSSES, check_needs, make_loss
from epa_jax.losses.energy import epa
from tests.losses import brute_force


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_definition_agrees_with_signature_and_schema(name):
    definition = LOSSES[name]
    parameters = list(inspect.signature(definition.fn).parameters.values())
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert keywords == set(definition.ranges)
    assert keywords <= {f.name for f in dataclasses.fields(LossConfig)} - {'name'}
    for key, value in definition.defaults().items():
        assert value in definition.ranges[key]


def test_schema_has_no_hyperparameter_that_no_loss_takes():
    taken = {key for definition in LOSSES.values() for key in definition.ranges}
    assert taken == {f.name for f in dataclasses.fields(LossConfig)} - {'name'}


def test_schema_leaves_hyperparameters_to_the_loss():
    fields = dataclasses.fields(LossConfig)
    assert all(f.default is None for f in fields if f.name != 'name')


def test_unset_takes_the_default_and_set_is_used():
    loss = make_loss('epa', {'beta': None, 'margin': 2.0, 'label_smoothing': None})
    assert dict(loss.hyperparameters) == {
        'beta': 0.1,
        'margin': 2.0,
        'weight_strong': 1.0,
        'weight_weak': 1.0,
    }
    assert loss.beta == 0.1
    assert loss.needs_reference
    table = brute_force.random_table(0)
    np.testing.assert_array_equal(loss.fn(table), epa(table, margin=2.0))
    assert not np.array_equal(loss.fn(table), epa(table))


def test_a_loss_without_beta_reports_plain_log_ratios():
    loss = make_loss('sft', {})
    assert loss.beta == 1.0
    assert not loss.needs_reference


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        ('epas', {}, r"loss\.name='epas'.*did you mean epa\?"),
        ('zzz', {}, r'known: epa, dpo, sft'),
        ('epa', {'label_smoothing': 0.1}, r'epa does not use it; takes beta, margin'),
        ('sft', {'beta': 0.1}, r'sft does not use it; takes no hyperparameters'),
        ('dpo', {'beta': 0.0}, r'loss\.beta=0\.0.*above 0'),
        ('dpo', {'beta': math.nan}, r'loss\.beta=nan'),
        ('dpo', {'beta': math.inf}, r'loss\.beta=inf'),
        ('dpo', {'label_smoothing': 0.6}, r'from 0 to 0\.5'),
        ('epa', {'weight_weak': -1.0}, r'from 0 to inf'),
    ],
)
def test_refusals_name_the_key(name, values, message):
    with pytest.raises(ConfigError, match=message):
        make_loss(name, values)


@pytest.mark.parametrize(
    ('name', 'n_strong', 'n_weak', 'mode', 'message'),
    [
        ('dpo', 1, 0, 'none', 'needs a reference'),
        ('dpo', 0, 4, 'cached', r'data\.n_strong of at least 1'),
        ('epa', 0, 0, 'cached', r'data\.n_strong \+ data\.n_weak of at least 1'),
    ],
)
def test_a_run_that_cannot_feed_the_loss_is_refused(name, n_strong, n_weak, mode, message):
    with pytest.raises(ConfigError, match=message):
        check_needs(
            make_loss(name, {}), n_strong=n_strong, n_weak=n_weak, reference_mode=mode
        )


def test_runs_that_can_feed_the_loss_pass():
    check_needs(make_loss('epa', {}), n_strong=0, n_weak=1, reference_mode='cached')
    check_needs(make_loss('dpo', {}), n_strong=1, n_weak=0, reference_mode='in_step')
    check_needs(make_loss('sft', {}), n_strong=0, n_weak=0, reference_mode='none')
