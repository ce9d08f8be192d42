"""What a sweep tries and leaves, with a planner whose memory is known."""

import dataclasses

import pytest

from epa_jax.config import ConfigError
from epa_jax.planning import sweep
from epa_jax.planning.topology import parse
from tests import planned

V5E = parse('v5e-16')
KEPT = {'full': 1, 'dots': 3, 'none': 9}


@pytest.fixture
def run(tmp_path):
    return planned.config(tmp_path)


class Planner:
    """Memory: state by shards, and what the rows of a device keep."""

    def __init__(self, room):
        self.room = room
        self.asked = []

    def __call__(self, run):
        if run.mesh.tensor > 2:
            raise ConfigError('mesh.tensor=4 does not divide kv_heads=2')
        shards = run.mesh.fsdp * run.mesh.tensor
        rows = run.batch.rows / (run.mesh.data * run.mesh.fsdp)
        needed = 160 / shards + rows * KEPT[run.model.remat]
        self.asked.append((run.mesh, rows, run.model.remat))
        return {
            'memory': {'fits': needed <= self.room, 'needed': needed},
            'cost': {
                'tokens_per_second': rows * (2 if run.model.remat == 'none' else 1),
                'step_seconds': 1.0,
                'mfu': 0.5,
                'dollars': 10.0,
            },
            'roofline': {'binds': 'compute'},
        }


def test_meshes_use_every_chip_and_keep_slices_apart():
    for name in ('v5e-16', '2xv5e-16', 'v5p-8', 'v5e-1'):
        topology = parse(name)
        found = list(sweep.meshes(topology))
        assert all(m.data * m.fsdp * m.tensor == topology.total for m in found)
        assert all(m.data % topology.slices == 0 for m in found)
        assert len({dataclasses.astuple(m) for m in found}) == len(found)


def test_the_best_that_fits_comes_first(run):
    rows = sweep.settings(run, V5E, Planner(room=19.5))
    assert rows[0]['fits']
    assert '--config.batch.rows=64 --config.model.remat=full' in rows[0]['flags']
    fitting = [row['speed'] for row in rows if row['fits']]
    assert fitting == sorted(fitting, reverse=True)
    assert f'best: {rows[0]["flags"]}' in sweep.table(rows)


def test_more_than_what_does_not_fit_is_not_compiled(run):
    planner = Planner(room=12.0)  # fsdp=16: 10, so that one or two rows fit with remat=full
    sweep.settings(run, V5E, planner)
    first = planner.asked[0][0]
    tried = [(rows, remat) for mesh, rows, remat in planner.asked if mesh == first]
    assert tried == [(1, 'full'), (1, 'dots'), (2, 'full'), (4, 'full')]


def test_a_mesh_that_cannot_be_is_told(run):
    rows = sweep.settings(run, V5E, Planner(room=99))
    refused = [row for row in rows if 'refused' in row]
    assert len(refused) == len([m for m in sweep.meshes(V5E) if m.tensor > 2])
    assert 'does not divide kv_heads' in sweep.table(rows)
    assert 'none of these fits' in sweep.table(refused)


def test_remedies_are_mild_first_and_add_up(run):
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, remat='none'),
        batch=dataclasses.replace(run.batch, rows=64),
    )
    changes = list(sweep.changes(run, V5E))
    flags = [flag for flag, _ in changes]
    assert flags[0] == '--config.model.remat=full'
    assert flags[1] == '--config.batch.rows=0'
    assert flags[-1].startswith('--config.lora.rank=16')
    last = changes[-1][1]
    assert (last.model.remat, last.batch.rows, last.lora.rank) == ('full', 0, 16)

    def planner(run):
        fits = run.optim.mu_dtype == 'bfloat16'
        return {'memory': {'fits': fits, 'needed': 5e9}}

    text = sweep.remedies(run, V5E, planner)
    assert text.endswith('--config.optim.mu_dtype=bfloat16')
    assert '5.00 GB' in text


def test_without_a_remedy_a_larger_slice_is_named(run):
    def planner(run):
        return {'memory': {'fits': False, 'needed': 5e9}}

    assert 'larger slice' in sweep.remedies(run, V5E, planner)
