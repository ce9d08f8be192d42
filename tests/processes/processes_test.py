"""Whole runs by real processes of `jax.distributed`, connected by gloo."""

import json

import numpy as np
import pytest

from tests import small_run
from tests.processes import command, worker

pytestmark = pytest.mark.exhaustive


def run_processes(folder, count):
    """What worker.main wrote, run by `count` processes."""
    command.run_workers('tests.processes.worker', str(folder), count=count)
    return dict(np.load(folder / f'{count}.npz'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('processes')
    small_run.write(folder)
    return folder


@pytest.fixture(scope='module')
def outcomes(folder):
    return {count: run_processes(folder, count) for count in (1, 2)}


@pytest.mark.parametrize('name', sorted(worker.LOSSES))
def test_a_run_does_not_depend_on_its_processes(outcomes, name):
    alone, together = outcomes[1], outcomes[2]
    keys = [key for key in alone if key.startswith(f'{name}/') and 'second' not in key]
    assert len(keys) > 40
    assert set(together) == set(alone)
    for key in keys:
        np.testing.assert_allclose(
            together[key], alone[key], rtol=1e-5, atol=1e-7, err_msg=key
        )


@pytest.mark.parametrize('name', sorted(worker.LOSSES))
def test_all_processes_see_the_same_data_in_the_same_order(folder, outcomes, name):
    alone, together = (folder / f'{name}-{count}' for count in outcomes)
    reports = [(f / 'data_report.json').read_text() for f in (alone, together)]
    assert reports[0] == reports[1]
    losses = [
        [
            json.loads(line).get('loss')
            for line in (f / 'metrics.jsonl').read_text().splitlines()
        ]
        for f in (alone, together)
    ]
    assert len(losses[0]) == worker.CHANGES['steps'] + 2  # two are evaluations
    for a, b in zip(*losses, strict=True):
        assert a == (b if b is None else pytest.approx(b, rel=1e-5))


@pytest.mark.parametrize('name', sorted(worker.LOSSES))
def test_the_runs_trained(outcomes, name):
    alone = outcomes[1]
    before, after = (alone[f'{name}/eval_{part}/eval/loss'] for part in ('first', 'last'))
    assert np.isfinite(after)
    assert after != before
