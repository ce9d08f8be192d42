"""The language model's tables, with a tiny model and hand-made files."""

import csv
import json
import math
import random

import jax
import numpy as np
import pytest

from epa_jax.evals.scoring import score
from epa_jax.formats.export import export_model
from epa_jax.formats.load import load_model
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from experiments.papers.mpo import retention, tables
from experiments.papers.mpo.bench import fingerprint, measure
from experiments.papers.mpo.splits import write_split
from tests import small_run, tiny

SIZE = retention.Size(steps=3, prompts=8, rows=8, questions=6, samples=4)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(r) + '\n' for r in records), 'utf-8')
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model, and files in the layouts of the real ones."""
    folder = tmp_path_factory.mktemp('retention')
    params = transformer.init_params(tiny.SPEC, jax.random.key(0))
    export_model(
        folder / 'model', tiny.SPEC, params, small_run.tokenizer(), dtype='float32'
    )
    rng = random.Random(0)

    def text(count, words=small_run.WORDS):
        return ' '.join(rng.choices(words, k=count))

    pairs = [{'prompt': text(3), 'chosen': text(4), 'rejected': text(5)} for _ in range(40)]
    rated = [
        {'prompt': text(3), 'responses': [{'text': text(3), 'rating': r} for r in (0, 1)]}
        for _ in range(20)
    ]
    few = small_run.WORDS[:4]  # so that there is something to learn
    passages = [{'context': text(9, few), 'continuation': text(1)} for _ in range(30)]
    choices = [
        {'query': text(4), 'choices': [text(2), text(2)], 'gold': i % 2} for i in range(9)
    ]
    write(folder / 'pairs.jsonl', pairs)
    write(folder / 'sft.jsonl', rated)
    write(folder / 'text.jsonl', passages)
    write(folder / 'choices.jsonl', choices)
    return folder


@pytest.fixture(scope='module')
def files(folder):
    parts = {
        name: write_split(folder / f'{name}.jsonl', folder / 'split', count=8)
        for name in ('pairs', 'sft', 'text')
    }
    return retention.Files(
        {name: train for name, (train, _) in parts.items()},
        {name: held_out for name, (_, held_out) in parts.items()},
    )


def config(folder, files, method, lr=1e-2):
    changes = {
        'model.path': str(folder / 'model'),
        'workdir': str(folder / 'runs' / method),
        'reference.cache_dir': str(folder / 'cache'),
        'data.max_prompt_tokens': 64,
        'data.max_response_tokens': 48,
    }
    return retention.run_config(method, lr, 0, SIZE, files, changes)


@pytest.fixture(scope='module')
def results(folder, files):
    """JSON files of the start and two methods, as main() writes them."""
    out = folder / 'results' / 'retention'
    run = config(folder, files, 'mpo+sft+text')
    tasks = {'choices': folder / 'choices.jsonl', 'lambada': files.held_out['text']}
    drawn = folder / 'samples.json'
    bench = retention.prepare_bench(run, files, SIZE, tasks, drawn)
    again = retention.prepare_bench(run, files, SIZE, tasks, drawn)
    assert fingerprint(again) == fingerprint(bench)  # other processes draw nothing anew
    out.mkdir(parents=True)
    spec, params = load_model(run.model.path)
    retention.write(out / 'start.json', measure(bench, params, spec, run))
    for method in ('mpo+sft+text', 'dpo'):
        found = retention.train_and_measure(config(folder, files, method), bench)
        about = {'method': method, 'lr': 1e-2, 'seed': 0, 'wall_seconds': 1.0}
        retention.write(out / f'{method}_0.01_0.json', about | found)
    return out


def test_a_split_keeps_every_record_once(folder, files):
    whole = (folder / 'pairs.jsonl').read_text().splitlines()
    parts = [
        part['pairs'].read_text().splitlines() for part in (files.train, files.held_out)
    ]
    assert [len(part) for part in parts] == [32, 8]
    assert sorted([*parts[0], *parts[1]]) == sorted(whole)


def test_methods_differ_in_loss_and_streams_alone(folder, files):
    runs = {name: config(folder, files, name) for name in retention.METHODS}
    assert {name: run.loss.name for name, run in runs.items()} == {
        'dpo': 'dpo',
        'ipo': 'ipo',
        'mpo': 'mpo',
        'mpo+sft': 'mpo',
        'mpo+sft+text': 'mpo',
        'dpo+sft+text': 'dpo',
        'sft': 'sft',
    }
    streams = {
        name: (bool(run.sft.train), bool(run.pretrain.train)) for name, run in runs.items()
    }
    assert streams['mpo+sft'] == (True, False)
    assert streams['mpo+sft+text'] == streams['dpo+sft+text'] == (True, True)
    assert {streams[name] for name in ('dpo', 'ipo', 'mpo', 'sft')} == {(False, False)}
    assert len({(run.data, run.optim, run.batch) for run in runs.values()}) == 1


def test_the_start_is_measured_as_it_is(folder, results):
    start = json.loads((results / 'start.json').read_text())
    spec, params = load_model(folder / 'model')
    pairs = start['texts']['pairs']
    assert np.array(pairs['logps']).shape == (8, 2)
    assert start['tasks']['choices']['questions'] == 6
    # an untrained model gives all 48 tokens about the same probability
    tokens = np.array(start['texts']['pretrain']['tokens'])
    logps = np.array(start['texts']['pretrain']['logps'])
    np.testing.assert_allclose(logps / tokens, -math.log(48), rtol=0.05)
    found = score(
        params, spec, Compute(), [np.array([1], np.int32)], [[np.array([2], np.int32)]]
    )
    assert np.isfinite(found.logps).all()


def test_tables(results, monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tables', '--out', str(results.parent)])
    tables.main()
    assert 'mpo+sft+text' in capsys.readouterr().out
    with (results.parent / 'tables.csv').open() as file:
        rows = {row['method']: row for row in csv.DictReader(file)}
    assert set(rows) == {'dpo', 'mpo+sft+text'}
    start = json.loads((results / 'start.json').read_text())
    run = json.loads((results / 'dpo_0.01_0.json').read_text())
    change = np.array(run['texts']['pairs']['logps']) - np.array(
        start['texts']['pairs']['logps']
    )
    accuracy = (change[:, 0] > change[:, 1]).mean()
    assert float(rows['dpo']['accuracy']) == pytest.approx(accuracy, abs=1e-5)
    before, after = (
        -np.sum(x['texts']['pretrain']['logps']) / np.sum(x['texts']['pretrain']['tokens'])
        for x in (start, run)
    )
    assert float(rows['dpo']['text_nll']) == pytest.approx(after - before, abs=1e-5)
    assert float(rows['mpo+sft+text']['text_nll']) < -0.01
    assert float(rows['mpo+sft+text']['text_nll']) < float(rows['dpo']['text_nll'])
    assert (results.parent / 'tables.png').stat().st_size > 10_000
    with (results.parent / 'questions.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 4


def test_seeds_have_intervals():
    keys = dict.fromkeys(tables.OVER_SEEDS, 0.0)
    keys |= {f'{key}_error': 0.5 for key in tables.OVER_SEEDS}
    rows = [keys | {'method': 'dpo', 'lr': 0.1, 'margin': 7.0}]
    for margin in (1.0, 2.0, 6.0):
        rows.append(keys | {'method': 'mpo', 'lr': 0.1, 'margin': margin})
    (found,) = tables.seed_rows(rows)
    assert (found['method'], found['lr'], found['seeds']) == ('mpo', 0.1, 3)
    assert found['margin'] == pytest.approx(3.0)
    # 4.303 is the 97.5 % point of t with two degrees of freedom, 7 the variance
    assert found['margin_interval'] == pytest.approx(4.303 * (7 / 3) ** 0.5, rel=1e-3)
    assert (found['gold_interval'], found['gold_error']) == (0, 0.5)


def test_differences_are_between_runs_of_one_seed():
    keys = dict.fromkeys(tables.OVER_SEEDS, 0.0)
    rows = []
    for seed, (mpo, dpo) in enumerate([(5.0, 4.0), (9.0, 7.0), (1.0, -2.0)]):
        rows.append(keys | {'method': 'mpo', 'lr': 0.1, 'seed': seed, 'gold': mpo})
        rows.append(keys | {'method': 'dpo', 'lr': 0.1, 'seed': seed, 'gold': dpo})
    rows.append(keys | {'method': 'dpo', 'lr': 0.1, 'seed': 3, 'gold': 99.0})
    (found,) = tables.difference_rows(rows)
    assert (found['method'], found['minus'], found['seeds']) == ('mpo', 'dpo', 3)
    assert found['gold'] == pytest.approx(2.0)
    assert found['gold_interval'] == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_runs_measured_on_other_texts_are_refused(results, tmp_path):
    start = json.loads((results / 'start.json').read_text())
    run = json.loads((results / 'dpo_0.01_0.json').read_text())
    retention.write(tmp_path / 'start.json', start | {'bench': 'other'})
    retention.write(tmp_path / 'dpo.json', run)
    with pytest.raises(ValueError, match=r'dpo 0\.01: measured on other texts'):
        tables.read(tmp_path)


def test_excerpts_have_no_end_to_measure(results):
    start = json.loads((results / 'start.json').read_text())
    assert start['texts']['pretrain']['tokens'] == [[9]] * 8  # a token a word


def test_lambada_is_not_among_the_other_tasks(results):
    start, (run, _) = tables.read(results)
    only = [t for t in tables.task_rows(start, run) if t['task'] == 'choices']
    assert tables.run_row(start, run)['questions'] == only[0]['change']
