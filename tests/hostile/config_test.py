"""Wild values of keys, on the command line and in files: refused by key, or a run."""

import dataclasses
import json
import math

import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.command_line import check_flags
from epa_jax.config import ConfigError, flatten, from_flat
from epa_jax.data.load import load_datasets
from epa_jax.optim import make_optimizer
from epa_jax.prepare import loss_of, steps_of
from epa_jax.schema import RunConfig
from tests import small_run
from tests.hostile import wild
from tests.hostile.wild import read_or_refuse

KEYS = sorted(flatten(RunConfig()))
MINIMAL = {'workdir': 'runs/a', 'data.train': 'a.jsonl', 'model.path': 'm'}


@wild.examples(300)
@hypothesis.given(st.sampled_from(KEYS), wild.scalars)
def test_wild_values_of_keys(key, value):
    def read():
        run = from_flat(flatten(RunConfig()) | MINIMAL | {key: value})
        loss_of(run)
        steps = steps_of(run, 100)
        assert 0 < steps < 2**33
        make_optimizer(run.optim, steps)
        json.dumps(flatten(run), ensure_ascii=False, allow_nan=False).encode()
        return run

    run = read_or_refuse(read, key, key.rpartition('.')[0] or key, key.rpartition('.')[2])
    if run is not None and isinstance(value, float):
        assert math.isfinite(value)


@wild.examples(150)
@hypothesis.given(
    st.sampled_from([*KEYS, 'data', 'no.such', '', '.', 'data.train.x']), wild.text
)
def test_wild_flags(key, value):
    for flag in (f'--config.{key}={value}', f'--config.{key}', f'--noconfig.{key}'):
        read_or_refuse(lambda flag=flag: check_flags([flag]), key)


@wild.examples(60)
@hypothesis.given(st.one_of(wild.text, st.sampled_from(['x' * 9999, '../' * 999])))
def test_wild_files(name):
    read_or_refuse(lambda: check_flags([f'--config={name}']), '--config=')


@wild.examples(60)
@hypothesis.given(st.data())
def test_damaged_configurations(data):
    """As a config.json that another program or a broken disk wrote."""
    flat = json.loads(json.dumps(flatten(RunConfig()) | MINIMAL))
    flat = data.draw(wild.damaged(flat))
    hypothesis.assume(isinstance(flat, dict))

    def read():
        return from_flat(flat)

    run = read_or_refuse(read, *(f'{key}' for key in [*flat, *KEYS]))
    assert run is None or dataclasses.asdict(run)


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('optim.lr', float('nan'), 'optim.lr=nan: expected a number of at most 1e'),
        ('optim.lr', float('inf'), 'optim.lr=inf: expected a number of at most 1e'),
        ('epochs', 1e300, 'epochs=1e.300: expected a number of at most 1e'),
        ('epochs', wild.HUGE, r'epochs=1000.*\.\.\..*: expected float'),
        ('steps', 2**31, 'steps=2147483648: expected a value from 0 to 2147483647'),
        ('batch.prompts', 2**40, r'batch\.prompts=1099511627776: expected a number'),
        ('workdir', 'runs/\0', r"workdir='runs/\\x00': expected at most .* zero byte"),
        ('workdir', 'runs/\udcff', r"workdir='runs/\\udcff': not UTF-8: byte 0xff at ch"),
        (
            'data.train',
            'a' * (1 << 21),
            r"data\.train='aaa.*aaa': expected at most 104857",
        ),
        ('log.profile_steps', '5', r"log\.profile_steps='5': expected FIRST:LAST"),
        ('log.profile_steps', '5:4', r"log\.profile_steps='5:4': expected 1 <= FIRST"),
        ('log.profile_steps', '0:4', r"log\.profile_steps='0:4': expected 1 <= FIRST"),
        ('log.profile_steps', '-1:4', r"log\.profile_steps='-1:4': expected FIRST:LAST"),
        ('log.profile_steps', '١:٢', r'log\.profile_steps=.*: expected FIRST:LAST'),
    ],
)
def test_values_that_no_run_has(key, value, message):
    with pytest.raises(ConfigError, match=message):
        from_flat(MINIMAL | {key: value})


def test_wild_sources_and_templates(tmp_path):
    """Names of files that are folders, devices, too long, or elsewhere."""
    small_run.write(tmp_path, pairs=8)
    tokenizer = small_run.tokenizer()
    wild_names = ['/dev/zero', '/dev/full', str(tmp_path), '/proc/self/mem', 'a' * 5000]
    for key in ('train', 'eval', 'chat_template'):
        for name in wild_names:
            run = small_run.config(
                tmp_path, data__eval_examples=2, **{f'data__{key}': name}
            )
            read_or_refuse(
                lambda run=run: load_datasets(run.data, tokenizer, min_strong=1),
                name[:20],
            )
