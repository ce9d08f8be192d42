"""One of the processes of a run: python -m tests.processes.worker FOLDER RANK COUNT PORT.

Trains the small run of FOLDER with each loss of LOSSES, on 8 devices over all processes.
Process 0 writes FOLDER/COUNT.npz: parameters and metrics of every loss.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from epa_jax.train import train
from tests import small_run

LOSSES = {
    'kto': {'loss__name': 'kto', 'reference__mode': 'in_step'},
    'bco': {'loss__name': 'bco'},
    'aot': {'loss__name': 'aot'},
    'aot_unpaired': {'loss__name': 'aot_unpaired', 'data__n_weak': 0},
    'epa': {'loss__name': 'epa'},
    'mpo': {'loss__name': 'mpo', 'data__n_weak': 0, 'sft__train': '{folder}/pairs.jsonl'},
}
CHANGES = {'steps': 3, 'data__n_weak': 1, 'batch__prompts': 6, 'mesh__data': 4}
DEVICES = 8


def connect(rank: int, count: int, port: int) -> None:
    """Makes this process one of `count`, with its share of the devices."""
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', DEVICES // count)
    if count > 1:
        jax.config.update('jax_cpu_collectives_implementation', 'gloo')
        jax.distributed.initialize(f'localhost:{port}', count, rank)


def outcome(result, whole) -> dict[str, np.ndarray]:
    """Final parameters, and metrics before, during and after training."""
    leaves = jax.tree.leaves(whole(result.params))
    arrays = {f'params{i}': np.asarray(leaf) for i, leaf in enumerate(leaves)}
    for part in ('eval_first', 'eval_last', 'train'):
        for name, value in (result.summary[part] or {}).items():
            arrays[f'{part}/{name}'] = np.asarray(value)
    return arrays


def main() -> None:
    folder, rank, count, port = Path(sys.argv[1]), *map(int, sys.argv[2:])
    connect(rank, count, port)
    assert (jax.process_count(), len(jax.devices())) == (count, DEVICES)
    arrays = {}
    for name, changes in LOSSES.items():
        values = {
            key: value.format(folder=folder) if isinstance(value, str) else value
            for key, value in (CHANGES | changes).items()
        }
        run = small_run.config(folder, f'{name}-{count}', **values)
        result = train(run)
        mesh = jax.tree.leaves(result.params)[0].sharding.mesh
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        whole = jax.jit(lambda tree: tree, out_shardings=everywhere)
        found = outcome(result, whole)
        arrays |= {f'{name}/{key}': value for key, value in found.items()}
    if rank == 0:
        np.savez(folder / f'{count}.npz', **arrays)


if __name__ == '__main__':
    main()
