"""The driver's commands and the table made from lines."""

import csv
import json
import sys

import pytest

from benchmarks import ours, records, split, step, task, workload
from tests import small_run

BASE = ['--name=tiny', '--data=pairs.jsonl', '--max-prompt=16', '--max-response=16']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('benchmark')
    small_run.write(made)
    return made


def setting(folder, **changes):
    values = {'ratio': '1:1', 'prompts': 4, 'steps': 2} | changes
    return workload.Setting(
        model=str(folder / 'model'),
        data=str(folder / 'pairs.jsonl'),
        max_prompt=16,
        max_response=16,
        **values,
    )


def header(contestant, **values):
    common = {
        'kind': 'header', 'contestant': contestant, 'variant': 'plain', 'model': 'm',
        'data': 'hh', 'ratio': '1:1', 'prompts': 4, 'dtype': 'float32',
        'matmul_flops': 1e11,
        'machine': {'commit': 'abc'}, 'shared_tokens': 800, 'repeated_tokens': 1400,
        'flops_shared': 6e11, 'flops_repeated': 9e11, 'flops_repeated_reference': 12e11,
    }  # fmt: skip
    return common | values


def process(contestant, seconds, reference, in_step, **values):
    lines = [header(contestant, **values)]
    for number, taken in enumerate(seconds, start=1):
        step = {'kind': 'step', 'step': number, 'seconds': taken}
        lines.append(step | {'compiled': number == 1})
    end = {
        'kind': 'end', 'reference_seconds': reference, 'reference_in_step': in_step,
        'peak_bytes': 2e9, 'computed_tokens': 900,
    }  # fmt: skip
    return [*lines, end]


def test_the_table_compares_with_trl_s_dpo_reference_included():
    files = [
        process('trl', [30.0, 20.0, 22.0], 0.0, True),
        process('trl', [31.0, 18.0, 20.0], 0.0, True, matmul_flops=2e11),
        process('ours', [9.0, 4.0, 4.0], 1.0, False),
        process('ours', [9.0, 7.0, 7.0], 1.0, False, ratio='1:1:2'),
        process('ours', [9.0, 7.0, 7.0], 1.0, False, dtype='bfloat16'),
    ]
    rows = {(r['contestant'], r['ratio'], r['dtype']): r for r in step.table(files)}
    trl, dpo = rows['trl', '1:1', 'float32'], rows['ours', '1:1', 'float32']
    assert (trl['seconds'], trl['rounds'], trl['steps']) == (20.0, 2, 2)
    # each step over the rounds: (18, 19, 20) and (20, 21, 22)
    assert (trl['seconds_low'], trl['seconds_high']) == (19.0, 21.0)
    assert trl['compile_seconds'] == 30.5
    assert dpo['examples_per_second'] == pytest.approx(4 / 5)
    assert dpo['examples_per_second_cached'] == pytest.approx(1.0)
    assert dpo['versus_trl_dpo'] == pytest.approx(20.0 / 5.0)
    assert rows['ours', '1:1:2', 'float32']['versus_trl_dpo'] == pytest.approx(20.0 / 8.0)
    assert rows['ours', '1:1', 'bfloat16']['versus_trl_dpo'] == ''
    # the best rate that any process of the dtype measured
    assert dpo['share_of_matmul'] == pytest.approx(6e11 / 4.0 / 2e11)
    assert trl['share_of_matmul'] == pytest.approx(12e11 / 20.0 / 2e11)


def test_keys_of_our_runs_are_a_setting_of_their_own(tmp_path):
    full = ['--set', 'model.remat=full', 'reference.path=a/b']
    args = step.arguments([*BASE, '--model=m', *full])
    name, found = step.files(tmp_path, 'ours', args)
    assert name.endswith('-ours-model.remat=full+reference.path=a_b')
    (tmp_path / f'{name}-1.jsonl').touch()
    assert len(step.files(tmp_path, 'ours', args)[1]) == 1
    plain = step.arguments([*BASE, '--model=m'])
    assert step.files(tmp_path, 'ours', plain)[1] == found == []
    assert step.files(tmp_path, 'trl', args)[0].endswith('-trl')
    files = [
        process('ours', [9.0, 4.0], 1.0, False),
        process('ours', [9.0, 7.0], 1.0, False, variant='model.remat=full'),
    ]
    rows = {row['variant']: row['seconds'] for row in step.table(files)}
    assert rows == {'plain': 4.0, 'model.remat=full': 7.0}


def test_the_committed_table_is_made_of_the_committed_lines():
    lines = [records.read(path) for path in sorted((step.RESULTS / 'step').glob('*.jsonl'))]
    with (step.RESULTS / 'step.csv').open(newline='') as file:
        assert len(list(csv.DictReader(file))) == len(step.table(lines))


def test_commands_name_the_interpreter_and_the_same_tokens(tmp_path):
    args = step.arguments([*BASE, '--model=m', '--trl-python=py', '--tunix-python=tp'])
    trl = step.command('trl+precompute', args, tmp_path / 'steps')
    assert trl[:3] == ['py', '-m', 'benchmarks.trl_dpo']
    assert '--precompute' in trl
    assert str(tmp_path / 'steps') in trl
    tunix = step.command('tunix', args, tmp_path / 'steps')
    assert tunix[0] == 'tp'
    assert tunix[tunix.index('--max-response') + 1] == '16'
    mine = step.command('ours', args, tmp_path / 'steps')
    assert mine[0] == sys.executable
    assert mine[mine.index('--data') + 1] == 'pairs.jsonl'


def test_other_trainers_know_pairs_alone(capsys):
    with pytest.raises(SystemExit):
        step.arguments([*BASE, '--model=m', '--ratio=1:1:2', '--contestants', 'trl'])
    assert 'pairs alone' in capsys.readouterr().err


def test_our_loop_is_measured_step_by_step(folder, tmp_path):
    path = tmp_path / 'lines.jsonl'
    ours.measured(setting(folder), records.Recorder(path))
    head, first, second, end = records.read(path)
    assert (head['contestant'], head['variant'], head['prompts']) == ('ours', 'plain', 4)
    assert first['loss'] == pytest.approx(0.6931, abs=1e-3)  # ln 2: it is its reference
    assert (first['compiled'], second['compiled']) == (True, False)
    assert end['reference_seconds'] > 0
    assert not end['reference_in_step']


def test_the_steps_file_holds_what_our_run_trains_on(folder, tmp_path):
    chosen = setting(folder, ratio='1:1:2')
    arguments = [
        f'--{name.replace("_", "-")}={value}' for name, value in vars(chosen).items()
    ]
    workload.main([*arguments, f'--out={tmp_path / "steps.jsonl"}'])
    found = task.read_steps(tmp_path / 'steps.jsonl')
    job = workload.make_job(workload.run_config(chosen, tmp_path))
    data = job.batches.train.steps()
    for groups in found:
        batches = next(data).preference
        trained = sum(int((batch.segments > 0).sum()) for batch in batches)
        assert trained == sum(len(g.prompt) + sum(map(len, g.responses)) for g in groups)
        assert [len(group.responses) for group in groups] == [4] * 4
        assert min(len(ids) for g in groups for ids in g.responses) > 1
    json.dumps(step.write_steps(_driver_arguments(chosen), tmp_path / 'again.jsonl'))
    assert task.read_steps(tmp_path / 'again.jsonl') == found


def _driver_arguments(chosen):
    flags = [f'--{name.replace("_", "-")}={v}' for name, v in vars(chosen).items()]
    return step.arguments(['--name=tiny', *flags])


def test_the_parts_of_a_step_add_up(folder, tmp_path):
    job = workload.make_job(workload.run_config(setting(folder), tmp_path))
    groups = workload.groups_of_steps(job.batches.train.preference, 1)[0]
    functions = split.programs(job, workload.objective(job), groups)
    for _ in range(2):
        for run in functions.values():
            run()
    seconds = dict(zip(functions, [0.5, 1.0, 3.0, 1.5, 5.0, 0.25], strict=True))
    found = split.parts(seconds)
    assert found['layers backward'] == 2.0
    assert found['head forward'] == 0.5
    assert found['head backward'] == 1.5
    whole = seconds['data'] + seconds['gradients'] + seconds['optimizer']
    assert sum(found.values()) == pytest.approx(whole)


def test_keys_of_a_run_are_typed():
    assert ours.keys(['model.remat=full', 'batch.rows=2']) == {
        'model__remat': 'full',
        'batch__rows': 2,
    }
    with pytest.raises(ValueError, match='no such key'):
        ours.keys(['model.rematt=full'])
