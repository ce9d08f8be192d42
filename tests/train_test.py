"""Whole runs: learning, resuming, references, refusals."""

import dataclasses
import json
import logging
import math

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data import row_lengths
from epa_jax.data.pipeline import Pipeline
from epa_jax.formats.load import load_model
from epa_jax.guard import GuardError
from epa_jax.loop import Loop, TrainingError
from epa_jax.train import show_log, train
from tests import small_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    small_run.write(folder)
    return folder


@pytest.fixture(scope='module')
def epa_result(folder):
    return train(
        small_run.config(folder, 'epa', checkpoint__every=5, checkpoint__keep_last=3)
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_epa_learns_held_out_preferences(folder, epa_result):
    summary = epa_result.summary
    before, after = summary['eval_first'], summary['eval_last']
    assert before['eval/loss'] == pytest.approx(math.log(4), abs=1e-5)
    assert after['eval/loss'] < before['eval/loss'] - 0.3
    assert before['eval/rewards/accuracies'] == 0.5
    assert after['eval/rewards/accuracies'] > 0.9
    assert after['eval/rewards/margins'] > 0.5
    assert summary['traces'] == {'measure': 1, 'table': 1, 'accumulate': 1, 'update': 1}


def test_the_run_folder_tells_what_happened(folder, epa_result):
    path = epa_result.folder
    names = {p.name for p in path.iterdir()}
    assert {
        'config.json', 'environment.json', 'data_report.json', 'summary.json',
        'metrics.jsonl', 'checkpoints', 'export',
    } <= names  # fmt: skip
    steps = [line['step'] for line in lines(path / 'metrics.jsonl') if 'loss' in line]
    assert steps == list(range(1, 17))
    report = json.loads((path / 'data_report.json').read_text())
    assert report['train']['examples'] == 32
    assert report['held_out']['examples'] == 8
    assert report['visits']['responses'] == {'chosen': 64, 'rejected': 64, 'weak': 128}
    card = (path / 'export' / 'README.md').read_text()
    assert 'rewards/accuracies' in card


def test_the_export_is_the_trained_policy(folder, epa_result):
    _, params = load_model(epa_result.folder / 'export')
    jax.tree.map(np.testing.assert_array_equal, params, epa_result.params)
    _, start = load_model(folder / 'model')
    assert not np.array_equal(start['norm'], params['norm'])


def test_a_run_cut_short_and_resumed_ends_bit_for_bit_the_same(
    folder, epa_result, monkeypatch
):
    from epa_jax import loop as loop_lib

    run = small_run.config(folder, 'cut', checkpoint__every=4, checkpoint__keep_last=3)
    original = loop_lib.Loop._save

    def save_then_stop(self, batches):
        original(self, batches)
        if self.step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_lib.Loop, '_save', save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    monkeypatch.undo()
    result = train(run)
    jax.tree.map(np.testing.assert_array_equal, result.params, epa_result.params)
    kept = {'loss', 'grad_norm', 'rewards/margins', 'lr'}

    def story(path):
        found = lines(path / 'metrics.jsonl')
        return [
            {k: v for k, v in line.items() if k in kept} for line in found if 'loss' in line
        ]

    assert story(result.folder) == story(epa_result.folder)


def test_a_finished_run_is_not_trained_again(folder, epa_result):
    again = train(
        small_run.config(folder, 'epa', checkpoint__every=5, checkpoint__keep_last=3)
    )
    assert again.summary['steps'] == 16
    assert again.summary['tokens'] == 0
    jax.tree.map(np.testing.assert_array_equal, again.params, epa_result.params)
    assert again.summary['eval_last'] == epa_result.summary['eval_last']


def test_a_reference_in_the_step_equals_the_cached_one(folder, epa_result):
    result = train(
        small_run.config(folder, 'in_step', reference__mode='in_step', export=False)
    )
    cached, in_step = (
        [line['loss'] for line in lines(r.folder / 'metrics.jsonl') if 'loss' in line]
        for r in (epa_result, result)
    )
    assert in_step == pytest.approx(cached, rel=1e-4)


def test_rows_of_several_lengths_change_no_result(folder, monkeypatch):
    met = []
    pack = Pipeline.pack

    def noting(self, groups):
        batches = pack(self, groups)
        met.append(batches[0].tokens.shape[1])
        return batches

    monkeypatch.setattr(Pipeline, 'pack', noting)

    def result(name, lengths):
        monkeypatch.setattr(row_lengths, 'choose', lambda *_: lengths)
        run = small_run.config(folder, name, batch__prompts=20, steps=12, optim__lr=1e-3)
        return train(run).summary

    one = result('one_length', [96])
    met.clear()
    several = result('two_lengths', [64, 96])
    assert set(met) == {64, 96}
    assert one['traces']['accumulate'] == 1
    assert several['traces']['accumulate'] == 2
    for name, value in one['eval_last'].items():
        assert several['eval_last'][name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def test_sft_needs_no_reference_and_learns(folder):
    none = {'reference__mode': 'none', 'data__n_strong': 0, 'data__n_weak': 0}
    run = small_run.config(folder, 'sft', loss__name='sft', export=False, **none)
    result = train(run)
    first, last = (result.summary[k]['eval/loss'] for k in ('eval_first', 'eval_last'))
    assert last < first - 0.5


def test_bfloat16_with_adafactor_and_rematerialisation_learns(folder):
    run = small_run.config(
        folder,
        'bfloat16',
        model__compute_dtype='bfloat16',
        model__remat='full',
        optim__name='adafactor',
        mesh__tensor=2,
    )
    result = train(run)
    first, last = result.summary['eval_first'], result.summary['eval_last']
    assert first['eval/loss'] == pytest.approx(math.log(4), abs=0.02)
    assert last['eval/loss'] < first['eval/loss'] - 0.3
    assert result.params['embed'].dtype == np.float32


def test_the_guard_stops_a_policy_that_is_not_its_reference(folder, monkeypatch):
    from epa_jax.cached_reference import CachedReference

    original = CachedReference.compute
    monkeypatch.setattr(
        CachedReference, 'compute', lambda *a: original(*a) * np.float32(0.5)
    )
    run = small_run.config(
        folder, 'guarded', reference__cache_dir=str(folder / 'bad_cache')
    )
    with pytest.raises(GuardError, match='step 0: epa loss is'):
        train(run)


def test_updates_that_are_never_finite_stop_the_run(folder):
    run = small_run.config(
        folder, 'nan', optim__lr=1e30, optim__clip_norm=0.0, max_bad_steps=2
    )
    with pytest.raises(TrainingError, match='not finite in 2 updates'):
        train(run)
    last = lines(folder / 'nan' / 'metrics.jsonl')[-1]
    assert last['skipped_in_a_row'] == 2


BAD = 4  # the step whose batch is bad


def spoiled(data):
    """The step with a reference log-prob of one prompt that is no number."""
    first, *others = data.preference
    logps = np.array(first.ref_logps)
    logps[0, 0, 0] = np.nan
    return data._replace(preference=[dataclasses.replace(first, ref_logps=logps), *others])


def test_one_bad_batch_is_skipped_as_if_it_had_not_been(folder, monkeypatch):
    """Against a run that computes the good batch of this step and takes no update."""
    update = Loop._update

    def with_bad_batch(loop, data):
        return update(loop, spoiled(data) if loop.step == BAD - 1 else data)

    def without_batch(loop, data):
        before = jax.tree.map(jnp.copy, loop.state)
        metrics = update(loop, data)
        if loop.step == BAD - 1:
            loop.state = before
        return metrics

    results = {}
    for name, patched in (('bad', with_bad_batch), ('left_out', without_batch)):
        monkeypatch.setattr(Loop, '_update', patched)
        run = small_run.config(folder, name, steps=8, max_bad_steps=2, export=False)
        results[name] = train(run)
    bad, left_out = results['bad'], results['left_out']
    jax.tree.map(np.testing.assert_array_equal, bad.params, left_out.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(bad.params))
    assert bad.summary['eval_last'] == left_out.summary['eval_last']
    assert (bad.summary['skipped_updates'], left_out.summary['skipped_updates']) == (1, 0)
    steps = [line for line in lines(bad.folder / 'metrics.jsonl') if 'loss' in line]
    assert [line['loss'] is None for line in steps] == [n == BAD for n in range(1, 9)]
    assert [line['skipped_updates'] for line in steps] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [line['skipped_in_a_row'] for line in steps] == [0, 0, 0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'loss__name': 'epaa'}, 'did you mean epa'),
        ({'loss__label_smoothing': 0.1}, 'loss.label_smoothing'),
        ({'reference__mode': 'none'}, 'needs a reference'),
        ({'loss__name': 'dpo', 'data__n_strong': 0}, 'data.n_strong'),
        ({'batch__rows': 3}, 'batch.rows=3'),
        ({'data__max_prompt_tokens': 1000}, 'was made for 128 positions'),
        ({'batch__prompts': 1000, 'steps': 0}, 'fill no step'),
        ({'mesh__tensor': 4, 'mesh__fsdp': 1}, 'does not divide kv_heads=2'),
    ],
)
def test_what_cannot_work_is_refused_before_training(folder, changes, message):
    run = small_run.config(folder, 'refused', export=False, **changes)
    with pytest.raises(ConfigError, match=message):
        train(run)
    assert not (folder / 'refused').exists()


@pytest.fixture
def own_log():
    """The package's log, which is given back as it was."""
    own = logging.getLogger('epa_jax')
    handlers, level, propagate = own.handlers[:], own.level, own.propagate
    absl_level = absl.logging.get_verbosity()
    yield own
    own.handlers[:] = handlers
    own.setLevel(level)
    own.propagate = propagate
    absl.logging.set_verbosity(absl_level)


@pytest.mark.parametrize(
    ('process', 'shown'),
    [(0, ['progress', 'slow', 'wrong']), (1, ['wrong']), (7, ['wrong'])],
)
def test_only_the_first_process_has_the_terminal(
    own_log, monkeypatch, capsys, process, shown
):
    monkeypatch.setattr(jax, 'process_index', lambda: process)
    show_log()
    log = own_log.getChild('train')
    log.debug('detail')
    log.info('progress')
    log.warning('slow')
    log.error('wrong')
    assert capsys.readouterr().err.split() == shown
