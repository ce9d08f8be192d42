import dataclasses
import inspect

import pytest

from epa_jax.loss_config import LossConfig
from epa_jax.losses import LOSSES
from epa_jax.losses.make import MODIFIERS

FIELDS = {f.name: f for f in dataclasses.fields(LossConfig)}


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_definition_agrees_with_signature_and_schema(name):
    definition = LOSSES[name]
    parameters = list(inspect.signature(definition.fn).parameters.values())
    keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    carried = set() if definition.carry is None else {'carried'}
    assert keywords == set(definition.allowed) | carried
    assert set(definition.allowed) <= set(FIELDS) - {'name'}
    for key, value in definition.defaults().items():
        assert value in definition.allowed[key]


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_definition_says_what_it_is_and_where_from(name):
    definition = LOSSES[name]
    assert definition.fn.__name__ == name
    assert 0 < len(definition.summary) < 65
    assert definition.summary.count('\n') == 0
    text = inspect.getdoc(inspect.getmodule(definition.fn)) + inspect.getdoc(definition.fn)
    assert definition.source in text or name == 'sft'


def test_schema_has_no_key_that_no_loss_and_no_modifier_takes():
    taken = {key for definition in LOSSES.values() for key in definition.allowed}
    assert taken | set(MODIFIERS) == set(FIELDS) - {'name'}


def test_schema_leaves_values_to_the_loss():
    assert all(f.default is None for name, f in FIELDS.items() if name != 'name')
    assert LossConfig().name in LOSSES


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        LOSSES['mine'] = LOSSES['dpo']


def test_what_couples_prompts_is_not_a_matter_of_differences_alone():
    coupled = {name for name, needs in LOSSES.items() if needs.couples_prompts}
    assert coupled == {'kto', 'bco', 'aot', 'aot_unpaired'}
    assert not any(LOSSES[name].differences_only for name in coupled)
