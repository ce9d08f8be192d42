import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.losses import LOSSES, make_loss
from epa_jax.losses.energy import epa
from epa_jax.losses.make import MODIFIERS, parse
from tests.losses.brute_force import random_table, read
from tests.losses.measure import compiled, values, widen
from tests.losses.twins import TWINS


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
    table = random_table(0)
    np.testing.assert_array_equal(loss.fn(table), epa(table, margin=2.0))
    assert not np.array_equal(loss.fn(table), epa(table))


def test_modifiers_that_are_set_are_among_the_hyperparameters():
    loss = make_loss('dpo', {'wpo': True, 'tail_weight': 0.25, 'nll_weight': 0.5})
    assert loss.hyperparameters['wpo'] is True
    assert loss.hyperparameters['nll_weight'] == 0.5
    assert loss.tail_weight == 0.25
    assert make_loss('dpo', {}).tail_weight == 1.0


def test_modifiers_that_are_off_do_nothing():
    off = {
        'reference_free': False,
        'rating_margin': 0.0,
        'wpo': False,
        'nll_weight': 0.0,
        'tail_weight': 1.0,
    }
    table = random_table(1)
    loss = make_loss('dpo', off)
    np.testing.assert_array_equal(loss.fn(table), make_loss('dpo', {}).fn(table))
    assert loss.needs == make_loss('dpo', {}).needs


def test_a_loss_without_beta_reports_plain_log_ratios():
    loss = make_loss('sft', {})
    assert loss.beta == 1.0
    assert not loss.needs_reference


def test_sums_are_read_with_and_without_weights():
    assert parse('dpo') == [(1.0, 'dpo')]
    assert parse('0.8*dpo + 0.2*bco') == [(0.8, 'dpo'), (0.2, 'bco')]
    assert parse('dpo+2 * sft') == [(1.0, 'dpo'), (2.0, 'sft')]
    assert parse(' 1e-2*ipo ') == [(0.01, 'ipo')]


@pytest.mark.parametrize(
    'name', ['0.8*dpo + 0.2*bco', 'sft + 3*kto', 'epa + 0.5*simpo + 2*pl_dpo']
)
def test_a_sum_is_the_sum_of_its_parts(name):
    table = widen(random_table(3))
    expected = sum(w * np.array(TWINS[base](read(table))) for w, base in parse(name))
    np.testing.assert_allclose(values(make_loss(name, {}), table), expected, rtol=1e-9)


def test_terms_share_a_hyperparameter_and_each_keeps_its_own_default():
    table = widen(random_table(4))
    prompts = read(table)
    shared = values(make_loss('dpo + ipo', {'beta': 0.7, 'tokens': 'mean'}), table)
    expected = np.array(TWINS['dpo'](prompts, beta=0.7)) + TWINS['ipo'](
        prompts, beta=0.7, tokens='mean'
    )
    np.testing.assert_allclose(shared, expected, rtol=1e-9)
    defaults = make_loss('dpo + simpo', {})
    assert defaults.beta == 0.1
    expected = np.array(TWINS['dpo'](prompts)) + TWINS['simpo'](prompts)
    np.testing.assert_allclose(values(defaults, table), expected, rtol=1e-9)


def test_a_sum_needs_what_any_of_its_terms_needs():
    needs = make_loss('simpo + kto + infonca', {}).needs
    assert needs.needs_reference
    assert needs.couples_prompts
    assert needs.ratings == 'always'
    assert (needs.min_strong, needs.min_weak) == (1, 1)
    assert not needs.differences_only
    assert not make_loss('dpo + orpo', {}).needs.shiftable
    assert not make_loss('simpo + cpo', {}).needs.needs_reference
    assert make_loss('dpo + pl_dpo', {}).needs.ratings == 'ranks'


def test_a_sum_carries_what_its_terms_carry():
    loss = make_loss('0.8*dpo + 0.2*bco', {'beta': 0.3})
    tables = [random_table(seed) for seed in (5, 6)]
    state, seen = loss.nothing_carried(), []
    for table in tables:
        state = jax.tree.map(jnp.add, state, loss.carry(table))
        prompts = read(table)
        bco = np.array(TWINS['bco'](prompts, beta=0.3, seen=seen))
        expected = 0.8 * np.array(TWINS['dpo'](prompts, beta=0.3)) + 0.2 * bco
        np.testing.assert_allclose(loss.fn(table, state), expected, rtol=1e-4)
        seen += [0.3 * y.ratio for p in prompts for y in p if y.role != 3]
    assert make_loss('dpo + ipo', {}).carry(tables[0]) == ()


def test_what_is_carried_is_of_the_modified_table():
    table = random_table(7)
    loss = make_loss('bco', {'reference_free': True})
    own = [y.p for p in read(table) for y in p if y.role != 3]
    (seen,) = loss.carry(table.replace(ref_logps=None))
    np.testing.assert_allclose(seen.total / seen.weight, 0.1 * np.mean(own), rtol=1e-5)


@pytest.mark.parametrize(
    ('name', 'values', 'message'),
    [
        ('epas', {}, r"loss\.name='epas'.*did you mean epa\?"),
        ('zzz', {}, r'no such loss; known: epa, ipm, dpo'),
        ('0.5*dpo + 0.5*bcoo', {}, r'did you mean bco\?'),
        ('dpo, bco', {}, r"expected a loss or a sum such as '0\.8\*dpo.*'dpo, bco'"),
        ('dpo +', {}, r"cannot read ''"),
        ('dpo*0.5', {}, r"cannot read 'dpo\*0\.5'"),
        ('-0.5*dpo', {}, r"'-0\.5': expected a weight above 0"),
        ('0*dpo + bco', {}, r"'0': expected a weight above 0"),
        ('1.2.3*dpo', {}, r"'1\.2\.3': expected a weight above 0"),
        ('1e999*dpo', {}, 'expected a weight above 0'),
        ('dpo + 2*dpo', {}, 'named twice; add its weights'),
        ('epa', {'label_smoothing': 0.1}, r'epa does not use it; takes beta, margin'),
        ('sft', {'beta': 0.1}, r'sft does not use it; takes no hyperparameters'),
        ('simpo', {'tokens': 'sum'}, r'loss\.tokens=sum: simpo does not use it; takes'),
        ('dpo', {'beta': 0.0}, r'loss\.beta=0\.0: dpo expects a value above 0'),
        ('dpo', {'beta': math.nan}, r'loss\.beta=nan'),
        ('dpo', {'beta': math.inf}, r'loss\.beta=inf'),
        ('dpo', {'beta': True}, r'loss\.beta=True'),
        ('dpo', {'label_smoothing': 0.6}, r'from 0 to 0\.5'),
        ('robust', {'label_smoothing': 0.5}, r'from 0 below 0\.5'),
        ('exo_pair', {'label_smoothing': 0.0}, r'above 0 to 0\.5'),
        ('epa', {'weight_weak': -1.0}, r'from 0 to inf'),
        ('dpo', {'pairs': 'some'}, r'loss\.pairs=some: dpo expects a value best_rest or'),
        ('ipo', {'tokens': 'avg'}, r'expects a value sum or mean'),
        ('dpo', {'tail_weight': 1.5}, r'the modifier expects a value from 0 to 1'),
        ('dpo', {'wpo': 'yes'}, r'loss\.wpo=yes: the modifier expects a value True or'),
        ('simpo', {'reference_free': True}, r'simpo has no reference to leave out'),
        ('sft', {'reference_free': True}, r'sft has no reference'),
        (
            'dpo',
            {'divergence': 'js', 'reference_free': True},
            r'loss\.divergence: loss\.reference_free leaves none',
        ),
        ('kto', {'divergence': 'js'}, r'loss\.divergence: only for losses of.*kto is not'),
        ('ipo', {'divergence': 'js', 'tokens': 'mean'}, r'ipo is not'),
        ('dpo + simpo', {'divergence': 'js'}, r'which dpo \+ simpo is not'),
        ('mpo', {'divergence': 'js'}, r'mpo is not'),
        ('dpo', {'divergence': 'kl'}, r'expects a value reverse_kl or forward_kl'),
        ('dpo', {'divergence': 'alpha'}, r"divergence_alpha and loss\.divergence='alpha'"),
        ('dpo', {'divergence_alpha': 0.5}, r'go together'),
        ('dpo', {'divergence': 'js', 'divergence_alpha': 0.5}, r'go together'),
        ('rpo_sq', {'rating_margin': 1.0}, r'rpo_sq uses the ratings itself'),
        ('orpo', {'rating_margin': 1.0}, r'loss\.rating_margin: orpo has no margin'),
        ('dpo', {'rating_margin': -1.0}, r'loss\.rating_margin=-1\.0.*from 0 to inf'),
        ('dpo', {'nll_tokens': 'sum'}, r'loss\.nll_tokens: needs loss\.nll_weight'),
        (
            'dpo',
            {'nll_tokens': 'sum', 'nll_weight': 0.0},
            r'loss\.nll_tokens: needs loss\.nll_weight',
        ),
    ],
)
def test_refusals_name_the_key_and_what_is_expected(name, values, message):
    with pytest.raises(ConfigError, match=message):
        make_loss(name, values)


def test_what_is_refused_is_a_matter_of_values():
    assert make_loss('mpo', {'divergence': 'js', 'against': 'reference'})
    assert make_loss('infonca', {'rating_margin': 1.0, 'rating_temperature': 0.0})
    assert make_loss('cpo', {'nll_tokens': 'mean'}).hyperparameters['nll_weight'] == 1.0


@pytest.mark.parametrize('name', sorted(LOSSES))
@pytest.mark.parametrize('key', sorted(set(MODIFIERS) - {'tail_weight'}))
def test_no_modifier_is_ignored(name, key):
    """A modifier changes the loss, unless it is refused or needs a partner."""
    value = {
        'reference_free': True,
        'divergence': 'js',
        'divergence_alpha': 0.5,
        'rating_margin': 1.0,
        'wpo': True,
        'nll_weight': 0.5,
        'nll_tokens': 'mean',
    }[key]
    chosen = {key: value}
    if key == 'divergence_alpha':
        chosen['divergence'] = 'alpha'
    if key == 'nll_tokens' and 'nll_weight' not in LOSSES[name].allowed:
        chosen['nll_weight'] = 1.0
    try:
        loss = make_loss(name, chosen)
    except ConfigError as error:
        assert f'loss.{key.removesuffix("_alpha")}' in str(error)  # noqa: PT017
        return
    table = widen(random_table(8))
    plain, _ = compiled(name)(table)
    assert not np.allclose(values(loss, table), plain, rtol=1e-3)
