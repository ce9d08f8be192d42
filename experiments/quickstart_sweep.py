"""DPO, EPA and MPO on the quickstart's pairs, over learning rates and seeds.

Claim: none; an example of a grid. Each method has keys of its own, so the grid is a list
  of grids; runs that differ in their seed alone become one column of the table.
Data: runs/quickstart/pairs.jsonl, as in quickstart_pairs.py.
Model: runs/quickstart/sft/export, a LLaMA of 0.94 million parameters.
Hardware and wall-clock: two CPU cores, about half a minute for each of the 12 runs.
Command (after `make quickstart`; again to continue):
  python -m epa_jax.sweep --config=experiments/quickstart_sweep.py
"""

from typing import Any

from ml_collections import ConfigDict

from experiments import quickstart_pairs


def get_config() -> ConfigDict:
    """What the runs share."""
    config = quickstart_pairs.get_config()
    config.workdir = 'runs/quickstart_sweep'
    config.loss.name = 'dpo'
    config.export = False
    return config


def get_grid() -> list[dict[str, list[Any]]]:
    """Values by key; every grid gives all combinations of its own."""
    shared: dict[str, list[Any]] = {'optim.lr': [1e-4, 3e-4], 'seed': [0, 1]}
    return [
        {'loss.name': ['dpo'], **shared},
        {'loss.name': ['epa'], 'data.n_weak': [2], **shared},
        {'loss.name': ['mpo'], 'loss.beta': [0.1], **shared},
    ]
