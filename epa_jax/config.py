"""From an ml_collections ConfigDict to a checked `schema.RunConfig`.

An experiment's `get_config()` starts from `defaults()` and sets values; `resolve()`
turns the result into frozen dataclasses and refuses what cannot work.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from epa_jax import storage
from epa_jax.limits import CHOICES, LINEAR, LOCAL, PLACES, RANGES
from epa_jax.schema import RunConfig
from epa_jax.strict_json import JsonError, brief, check_text, shown

MAX_TEXT = 1 << 20  # characters of a value
MAX_NUMBER: dict[type, float] = {bool: 1, int: 2**32 - 1, float: 1e30}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key and the remedy."""


def defaults() -> ConfigDict:
    """Every key of `RunConfig` with its default, as a locked ConfigDict."""
    config = _to_config_dict(RunConfig)
    config.lock()
    return config


def _to_config_dict(schema: Any) -> ConfigDict:
    out = ConfigDict()
    for field in dataclasses.fields(schema):
        value_type, optional = _field_type(schema, field.name)
        if dataclasses.is_dataclass(value_type):
            out[field.name] = _to_config_dict(value_type)
        else:
            placeholder = config_dict.placeholder(value_type)
            out[field.name] = placeholder if optional else field.default
    return out


def _field_type(schema: type, name: str) -> tuple[Any, bool]:
    """The type of a field without `| None`, and whether it may be None."""
    hint = typing.get_type_hints(schema)[name]
    if isinstance(hint, types.UnionType):
        return next(a for a in typing.get_args(hint) if a is not types.NoneType), True
    return hint, False


def resolve(config: ConfigDict) -> RunConfig:
    """Typed and checked form of `config`.

    Raises:
      ConfigError: an unknown or ill-typed key, a value out of range, or keys that
        contradict one another.
    """
    run = _build(RunConfig, config, '')
    flat = flatten(run)
    for key, choices in CHOICES.items():
        if flat[key] not in choices:
            raise ConfigError(
                f'{key}={shown(flat[key])}: expected one of {", ".join(choices)}'
                + nearest(str(flat[key]), choices)
            )
    for key, (low, high) in RANGES.items():
        _check_range(key, flat[key], low, high)
    _check_places(flat)
    lora_modules(run.lora.modules)
    profile_steps(run.log.profile_steps)
    _check_together(run)
    return run


def _build(schema: type, config: ConfigDict, prefix: str) -> Any:
    names = [f.name for f in dataclasses.fields(schema)]
    for key in config:
        if key not in names:
            raise ConfigError(f'{prefix}{key}: no such key{nearest(key, names)}')
    values = {}
    for name in names:
        if name not in config:
            raise ConfigError(
                f'{prefix}{name}: missing; get_config() starts from config.defaults()'
            )
        value_type, optional = _field_type(schema, name)
        values[name] = _convert(value_type, optional, config[name], f'{prefix}{name}')
    return schema(**values)


def _convert(value_type: Any, optional: bool, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(value_type):
        if not isinstance(value, ConfigDict):
            raise ConfigError(f'{key}={value!r}: expected a group of keys')
        return _build(typing.cast(type, value_type), value, f'{key}.')
    if value is None and optional:
        return None
    if value_type is float and type(value) is int:
        _check_sane(key, value)
        value = float(value)
    if type(value) is not value_type:
        raise ConfigError(
            f'{key}={shown(value)}: expected {value_type.__name__}, got '
            f'{type(value).__name__}'
        )
    _check_sane(key, value)
    return value


def _check_sane(key: str, value: Any) -> None:
    """Refuses what no key can be, whatever it means."""
    if isinstance(value, str):
        try:
            check_text(value)
        except JsonError as error:
            raise ConfigError(f'{key}={shown(value)}: {error}') from None
        if '\0' in value or len(value) > MAX_TEXT:
            raise ConfigError(
                f'{key}={shown(value)}: expected at most {MAX_TEXT} characters, none of '
                'them a zero byte'
            )
    elif not abs(value) <= MAX_NUMBER[type(value)]:
        most = MAX_NUMBER[type(value)]
        raise ConfigError(f'{key}={shown(value)}: expected a number of at most {most:g}')


def _check_range(key: str, value: float, low: float | None, high: float | None) -> None:
    too_low = low is not None and not value >= low
    if too_low or (high is not None and not value <= high):
        span = f'{"-inf" if low is None else low} to {"inf" if high is None else high}'
        raise ConfigError(f'{key}={value!r}: expected a value from {span}')


def _check_places(flat: Mapping[str, Any]) -> None:
    """Refuses URLs that would be taken for local folders or names of data sets."""
    for keys, look in ((PLACES, storage.check), (LOCAL, storage.local_only)):
        for key in keys:
            try:
                look(flat[key])
            except storage.StorageError as error:
                raise ConfigError(f'{key}={flat[key]!r}: {error}') from None


def lora_modules(text: str) -> tuple[str, ...]:
    """The names that lora.modules holds, in the order of `limits.LINEAR`.

    Raises:
      ConfigError: a name that is not among those, or none.
    """
    if text == 'all-linear':
        return LINEAR
    found = [name.strip() for name in text.split(',')]
    for name in found:
        if name not in LINEAR:
            raise ConfigError(
                f"lora.modules={text!r}: {name!r} is not 'all-linear' or a matrix"
                + nearest(name, LINEAR)
            )
    return tuple(name for name in LINEAR if name in found)


def profile_steps(text: str) -> range:
    """The steps that log.profile_steps names, from 1; none for ''.

    Raises:
      ConfigError: not FIRST:LAST.
    """
    match = re.fullmatch(r'([0-9]{1,9}):([0-9]{1,9})', text)
    if match is None and text:
        raise ConfigError(
            f"log.profile_steps={shown(text)}: expected FIRST:LAST, such as '10:15'"
        )
    if match is None:
        return range(0)
    first, last = int(match[1]), int(match[2])
    if not 1 <= first <= last:
        raise ConfigError(f'log.profile_steps={text!r}: expected 1 <= FIRST <= LAST')
    return range(first, last + 1)


def _check_together(run: RunConfig) -> None:
    """Refuses keys that are fine alone and impossible together."""
    if not run.workdir:
        raise ConfigError('workdir: empty; name a folder for the run, such as runs/first')
    if not run.data.train:
        raise ConfigError('data.train: empty; name a file, a folder or a hub data set')
    if not run.model.path:
        raise ConfigError('model.path: empty; name a Hugging Face folder or a .gguf file')
    if run.steps == 0 and run.epochs == 0:
        raise ConfigError('steps=0 and epochs=0: nothing to train; set one of them')
    if [run.mesh.data, run.mesh.fsdp, run.mesh.tensor].count(-1) > 1:
        raise ConfigError('mesh: at most one of data, fsdp, tensor may be -1')
    if 0 in (run.mesh.data, run.mesh.fsdp, run.mesh.tensor):
        raise ConfigError('mesh: an axis of 0 devices; use 1 to leave an axis unused')
    if run.reference.mode == 'none' and (run.reference.path or run.reference.cache_file):
        raise ConfigError("reference.mode='none' contradicts reference.path or cache_file")
    if run.reference.mode != 'cached' and run.reference.cache_file:
        raise ConfigError("reference.cache_file needs reference.mode='cached'")
    for name in ('sft', 'pretrain'):
        stream = getattr(run, name)
        if stream.eval and not stream.train:
            raise ConfigError(f'{name}.eval={stream.eval!r}: needs {name}.train')
    sources = (run.data, run.sft, run.pretrain)
    if run.checkpoint.keep_best and not any(s.eval or s.eval_examples for s in sources):
        raise ConfigError(
            'checkpoint.keep_best needs held-out examples: eval or eval_examples of data, '
            'sft or pretrain'
        )


def check_key(key: str, prefix: str = '') -> None:
    """Refuses a dotted key that does not exist.

    Raises:
      ConfigError: names the nearest; `prefix` goes before the key in the message.
    """
    known = list(flatten(RunConfig()))
    if key in {name.rpartition('.')[0] for name in known}:
        raise ConfigError(f'{prefix}{key}: a group of keys; set one of its keys')
    if key not in known:
        raise ConfigError(f'{prefix}{key}: no such key{nearest(key, known)}')


def parse(key: str, text: str, prefix: str = '') -> Any:
    """The value that a text gives a key.

    Raises:
      ConfigError: it is not of the key's type.
    """
    value_type = _leaf_type(key)
    try:
        if value_type is not bool:
            return value_type(text)
        if text.lower() not in ('true', 'false', '1', '0', 't', 'f'):
            raise ValueError(text)
        return text.lower() in ('true', '1', 't')
    except ValueError:
        raise ConfigError(
            f'{prefix}{key}={brief(text)}: expected {value_type.__name__}'
        ) from None


def _leaf_type(key: str) -> type:
    schema: Any = RunConfig
    for part in key.split('.'):
        schema, _ = _field_type(schema, part)
    return schema


def from_flat(values: Mapping[str, Any]) -> RunConfig:
    """The configuration whose `flatten` is `values`; keys added since have defaults.

    Raises:
      ConfigError: as `resolve`, or keys that this version does not have.
    """
    known = flatten(RunConfig())
    for key in values:
        if key not in known:
            raise ConfigError(f'{key}: no such key; the run is of another version')
    return resolve(changed(defaults(), values))


def changed(config: ConfigDict, values: Mapping[str, Any]) -> ConfigDict:
    """A copy of a configuration with values set, by dotted key.

    Raises:
      ConfigError: a value of the wrong type.
    """
    config = config.copy_and_resolve_references()
    for key, value in values.items():
        *groups, last = key.split('.')
        target = functools.reduce(lambda tree, group: tree[group], groups, config)
        try:
            target[last] = value
        except (TypeError, ValueError, OverflowError):
            kind = _leaf_type(key).__name__
            raise ConfigError(f'{key}={shown(value)}: expected {kind}') from None
    return config


def flatten(run: Any, prefix: str = '') -> dict[str, Any]:
    """Dotted keys and values of a dataclass, nested dataclasses included."""
    out: dict[str, Any] = {}
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            out.update(flatten(value, f'{prefix}{field.name}.'))
        else:
            out[prefix + field.name] = value
    return out


def nearest(name: str, options: Sequence[str]) -> str:
    """The end of a message about a name that is none of the options."""
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not close:  # perhaps the right name in the wrong group
        last = name.rpartition('.')[2]
        close = [o for o in options if o.rpartition('.')[2] == last][:1]
    return f'; did you mean {close[0]}?' if close else f'; known: {", ".join(options)}'
