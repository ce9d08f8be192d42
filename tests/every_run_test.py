"""Every loss in a whole run with every reference mode and adapters; the modes agree."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from epa_jax.losses import LOSSES
from epa_jax.train import train
from tests import small_run, tiny

pytestmark = pytest.mark.exhaustive

SPEC = dataclasses.replace(
    tiny.SPEC, n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8
)
STEPS = 3
FREE = sorted(name for name in LOSSES if not LOSSES[name].needs_reference)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model, rated data, and a cache of compiled programs that the runs share."""
    folder = tmp_path_factory.mktemp('runs')
    small_run.write(folder, spec=SPEC)
    with (folder / 'rated.jsonl').open('w') as file:
        for i in range(12):
            texts = ['w1 w2', f'w30 w{i}', 'w40 w41 w5']
            responses = [{'text': text, 'rating': 3.0 - k} for k, text in enumerate(texts)]
            file.write(json.dumps({'prompt': f'w{i}', 'responses': responses}) + '\n')
    settings = {
        'jax_compilation_cache_dir': str(folder / 'compiled'),
        'jax_persistent_cache_min_compile_time_secs': 0,
        'jax_persistent_cache_min_entry_size_bytes': -1,
    }
    before = {key: getattr(jax.config, key) for key in settings}
    for key, value in settings.items():
        jax.config.update(key, value)
    yield folder
    for key, value in before.items():
        jax.config.update(key, value)


@pytest.fixture(scope='module')
def run(folder):
    """(loss, mode) -> result of a whole run; each is made once."""

    @functools.cache
    def one(name, mode, rank=0):
        return train(
            small_run.config(
                folder,
                f'{name}-{mode}-{rank}',
                lora__rank=rank,
                steps=STEPS,
                export=False,
                loss__name=name,
                reference__mode=mode,
                data__train=str(folder / 'rated.jsonl'),
                data__eval_examples=4,
                data__n_strong=2,
                data__n_weak=1,
                batch__prompts=4,
                mesh__fsdp=1,
                mesh__data=-1,
                mesh__tensor=1,
            )
        )

    return one


def check_same(a, b):
    assert a.summary['steps'] == b.summary['steps'] == STEPS
    assert set(a.summary['traces'].values()) == {1}
    for part in ('eval_first', 'eval_last'):
        assert np.isfinite(list(a.summary[part].values())).all()
        assert a.summary[part] == pytest.approx(b.summary[part], rel=1e-4, abs=1e-5)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_a_cached_reference_trains_as_one_in_the_step(run, name):
    cached = run(name, 'cached')
    first, last = (
        cached.summary[f'eval_{part}']['eval/loss'] for part in ('first', 'last')
    )
    assert first != last
    check_same(cached, run(name, 'in_step'))


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_adapters_train_with_every_loss(run, name):
    """From where the whole model starts; their base is the reference in the step."""
    adapted = run(name, 'in_step', 2).summary
    whole = run(name, 'in_step').summary['eval_first']
    assert adapted['eval_first'] == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert adapted['eval_first']['eval/loss'] != adapted['eval_last']['eval/loss']
    assert np.isfinite(list(adapted['eval_last'].values())).all()


@pytest.mark.parametrize('name', FREE)
def test_a_loss_that_needs_no_reference_trains_the_same_without(run, name):
    check_same(run(name, 'none'), run(name, 'cached'))
