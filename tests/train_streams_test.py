"""Whole runs with text beside the preference data: MPO and others."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.data.streams import load_streams
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.loop import Loop
from epa_jax.prepare import prepare
from epa_jax.train import train
from tests import small_run, tiny

QUICK = {'steps': 6, 'export': False, 'batch__prompts': 4}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    small_run.write(folder)
    texts = [' '.join(small_run.WORDS[i : i + 9]) for i in range(20)]
    (folder / 'text.jsonl').write_text('\n'.join(json.dumps({'text': t}) for t in texts))
    return folder


def mpo(folder, name, **changes):
    streams = {
        'loss__name': 'mpo',
        'data__n_weak': 0,
        'sft__train': str(folder / 'pairs.jsonl'),
        'sft__eval_examples': 4,
        'sft__sequences': 4,
        'sft__weight': 0.5,
        'pretrain__train': str(folder / 'text.jsonl'),
        'pretrain__eval_examples': 3,
        'pretrain__sequences': 3,
        'pretrain__weight': 0.2,
        'pretrain__max_tokens': 64,
    }
    return small_run.config(folder, name, **(QUICK | streams | changes))


def test_mpo_learns_pairs_and_text_and_compiles_once(folder):
    result = train(mpo(folder, 'mpo', steps=12))
    before, after = result.summary['eval_first'], result.summary['eval_last']
    for name in ('eval/loss', 'eval/sft/nll', 'eval/pretrain/nll'):
        assert after[name] < before[name] - 0.01, name
    last = result.summary['train']
    nll = 0.5 * last['sft/nll'] + 0.2 * last['pretrain/nll']
    assert last['loss/total'] == pytest.approx(last['loss'] + nll)
    traces = result.summary['traces']
    assert set(traces.values()) == {1}
    assert {'imitate', 'nll'} < set(traces)
    report = json.loads((folder / 'mpo' / 'data_report.json').read_text())
    assert report['streams']['pretrain']['sequences'] == 17
    read = {r['group']: (r['source'], r['examples']) for r in report['read']}
    assert read['pretrain'] == (str(folder / 'text.jsonl'), 20)


def test_a_stream_holds_what_it_is_about(folder):
    """With a heavy stream of rejected words their likelihood rises under DPO too."""
    rows = [{'prompt': 'w1', 'completion': ' '.join(small_run.WORDS[22:30])}] * 6
    (folder / 'rejected.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    text = {'sft__train': str(folder / 'rejected.jsonl'), 'sft__sequences': 6}
    values = QUICK | {'loss__name': 'dpo', 'data__n_weak': 0}
    without = train(small_run.config(folder, 'dpo', **values))
    held = train(small_run.config(folder, 'dpo_sft', **values, **text, sft__weight=5.0))
    name = 'eval/logps/rejected'
    assert held.summary['eval_last'][name] > without.summary['eval_last'][name]
    assert held.summary['train']['sft/nll'] < 3.0


def test_resumed_streams_go_on_where_they_were(folder, monkeypatch):
    changes = {'checkpoint__every': 3}
    whole = train(mpo(folder, 'whole', **changes))
    original = Loop._save

    def save_then_stop(self, batches):
        original(self, batches)
        if self.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, '_save', save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train(mpo(folder, 'cut', **changes))
    monkeypatch.undo()
    resumed = train(mpo(folder, 'cut', **changes))
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert resumed.summary['eval_last'] == whole.summary['eval_last']


def argument_bytes(run):
    """Of each program of a step: parameters, sums and batches that it is given."""
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    job = prepare(run, datasets, tokenizer, load_streams(run, tokenizer))
    step, total = next(job.batches.train.steps()), job.programs.zero()
    params, frozen = job.weights.trained, job.frozen
    batch = job.programs.place(step.preference[0])
    lowered = [job.programs.accumulate.lower(total, params, frozen, batch)]
    for text in step.streams.values():
        placed = job.programs.place(text.batches[0])
        lowered.append(job.programs.imitate.lower(total, params, frozen, placed, 1.0))
    compiled = [program.compile().memory_analysis() for program in lowered]
    return max(memory.argument_size_in_bytes for memory in compiled)


def test_mpo_holds_no_reference_in_memory(folder):
    """DPO with the reference in the step is given one more copy of the parameters."""
    one_device = {'mesh__data': 1, 'mesh__fsdp': 1, 'mesh__tensor': 8}
    wide = dataclasses.replace(
        tiny.SPEC, d_model=128, d_ff=256, n_heads=8, n_kv_heads=8, head_dim=16
    )
    (folder / 'wide').mkdir()
    small_run.write(folder / 'wide', spec=wide)
    changes = one_device | {'model__path': str(folder / 'wide' / 'model')}
    changes |= {'batch__rows': 1, 'data__n_weak': 0}
    ours = argument_bytes(mpo(folder, 'x', **changes))
    theirs = argument_bytes(
        small_run.config(
            folder, 'y', **changes, loss__name='dpo', reference__mode='in_step'
        )
    )
    copy = sum(x.nbytes for x in jax.tree.leaves(tiny.params(wide))) / 8
    assert theirs - ours == pytest.approx(copy, rel=0.1)
    assert ours < 0.72 * theirs


def test_text_longer_than_the_model_s_positions_is_refused(folder):
    with pytest.raises(ConfigError, match=r'pretrain\.max_tokens=129.* 128 positions'):
        train(mpo(folder, 'long', pretrain__max_tokens=129))


def test_held_out_text_needs_a_stream(folder):
    with pytest.raises(ConfigError, match=r'sft\.eval=.*needs sft\.train'):
        small_run.config(folder, sft__eval='x.jsonl')
