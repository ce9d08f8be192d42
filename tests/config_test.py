import dataclasses
import inspect
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from epa_jax import schema
from epa_jax.config import (
    ConfigError,
    defaults,
    flatten,
    from_flat,
    resolve,
)
from epa_jax.limits import CHOICES, RANGES
from epa_jax.schema import RunConfig

KEYS = flatten(RunConfig())


def complete():
    """Defaults with the keys that have none."""
    config = defaults()
    config.workdir = 'runs/test'
    config.data.train = 'train.jsonl'
    config.model.path = 'models/tiny'
    return config


def changed(**values):
    """Complete configuration with dotted keys (written with __) set."""
    config = complete()
    for key, value in values.items():
        group, _, name = key.rpartition('__')
        setattr(config[group] if group else config, name, value)
    return config


def test_defaults_resolve_to_the_schema():
    run = resolve(complete())
    expected = KEYS | {
        'workdir': 'runs/test',
        'data.train': 'train.jsonl',
        'model.path': 'models/tiny',
    }
    assert flatten(run) == expected
    assert hash(run) == hash(resolve(complete()))


def test_defaults_are_locked_and_fresh():
    config = defaults()
    with pytest.raises(AttributeError, match='locked'):
        config.optim.learning_rate = 1.0
    config.optim.lr = 1.0
    assert defaults().optim.lr == RunConfig().optim.lr


def test_values_reach_the_schema_with_their_types():
    run = resolve(changed(optim__lr=1, loss__beta=0.3, steps=7, checkpoint__resume=False))
    assert run.optim.lr == 1.0
    assert isinstance(run.optim.lr, float)
    assert (run.loss.beta, run.steps, run.checkpoint.resume) == (0.3, 7, False)
    assert run.loss.margin is None


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ({'optim__name': 'adam'}, r"optim\.name='adam': .*did you mean adamw\?"),
        ({'optim__warmup_ratio': 1.5}, r'optim\.warmup_ratio=1\.5: .* 0 to 1'),
        ({'optim__lr': float('nan')}, r'optim\.lr=nan'),
        ({'batch__prompts': 0}, r'batch\.prompts=0: .* 1 to inf'),
        ({'seed': -1}, r'seed=-1'),
        ({'workdir': ''}, r'workdir: empty'),
        ({'data__train': ''}, r'data\.train: empty'),
        ({'model__path': ''}, r'model\.path: empty'),
        ({'epochs': 0.0}, r'steps=0 and epochs=0'),
        ({'mesh__data': -1}, r'at most one'),
        ({'mesh__tensor': 0}, r'0 devices'),
        ({'reference__mode': 'none', 'reference__path': 'x'}, r"reference\.mode='none'"),
        ({'reference__mode': 'in_step', 'reference__cache_file': 'x'}, r'cache_file needs'),
        ({'checkpoint__keep_best': 1}, r'keep_best needs held-out examples'),
    ],
)
def test_what_cannot_run_is_refused_by_key(values, message):
    with pytest.raises(ConfigError, match=message):
        resolve(changed(**values))


def test_unknown_missing_and_ill_typed_keys_are_refused():
    config = complete().unlock()
    config.optim.learning_rate = 1.0
    with pytest.raises(ConfigError, match=r'optim\.learning_rate: no such key'):
        resolve(config)
    config = complete().unlock()
    del config.optim['lr']
    with pytest.raises(ConfigError, match=r'optim\.lr: missing'):
        resolve(config)
    config = ConfigDict(complete().to_dict() | {'optim': 'adamw'})
    with pytest.raises(ConfigError, match=r"optim='adamw': expected a group"):
        resolve(config)


@pytest.mark.parametrize(
    ('key', 'value'),
    [('steps', 1.5), ('steps', True), ('seed', '0'), ('export', 1), ('workdir', None)],
)
def test_wrong_types_are_refused(key, value):
    config = complete().to_dict() | {key: value}
    with pytest.raises(ConfigError, match=rf'^{key}=.*expected'):
        resolve(ConfigDict(config))


def refusal(config):
    try:
        resolve(config)
    except ConfigError as error:
        return str(error)
    return ''


@given(st.sampled_from(sorted(RANGES)), st.sampled_from([-1, 1]))
def test_every_range_has_both_sides(key, side):
    """The bounds themselves pass the range check, one beyond does not."""
    low, high = RANGES[key]
    bound = low if side < 0 else high
    if bound is None:
        return
    group, _, name = key.rpartition('.')
    config = complete()
    values = config[group] if group else config
    values[name] = type(values[name])(bound + side)
    with pytest.raises(ConfigError, match=rf'^{key}='):
        resolve(config)
    values[name] = type(values[name])(bound)
    assert not refusal(config).startswith(f'{key}=')  # other rules may refuse it


def test_rules_are_about_keys_that_exist_and_hold_by_default():
    assert set(CHOICES) | set(RANGES) <= set(KEYS)
    for key, choices in CHOICES.items():
        assert KEYS[key] in choices
    for key, (low, high) in RANGES.items():
        assert low is None or KEYS[key] >= low
        assert high is None or KEYS[key] <= high


def schemas():
    named = [getattr(schema, n) for n in dir(schema) if n.endswith('Config')]
    return [c for c in named if dataclasses.is_dataclass(c)]


@pytest.mark.parametrize('config_class', schemas())
def test_every_key_is_documented(config_class):
    described = inspect.getdoc(config_class).partition('Attributes:')[2]
    names = {line.strip().partition(':')[0] for line in described.splitlines()}
    groups = {
        n
        for n, t in typing.get_type_hints(config_class).items()
        if dataclasses.is_dataclass(t)
    }
    keys = {f.name for f in dataclasses.fields(config_class)} - groups
    assert keys <= names


def test_a_flat_configuration_comes_back_whole():
    run = resolve(changed(loss__name='simpo', loss__beta=0.3, data__n_weak=2))
    assert from_flat(flatten(run)) == run
    for key in ('loss.gone', 'gone.beta', 'gone'):
        with pytest.raises(ConfigError, match=f'{key}: no such key; the run is of another'):
            from_flat(flatten(run) | {key: 1})
