"""Any loss on the pairs that `make quickstart` leaves behind.

Claim: none; compare losses in a world whose true reward is known, in half a minute each.
Data: runs/quickstart/pairs.jsonl, 4,800 pairs with Bradley-Terry labels, and 200 held out,
  pairs_held_out.jsonl.
Model: runs/quickstart/sft/export, a LLaMA of 0.94 million parameters.
Hardware and wall-clock: two CPU cores, about half a minute.
Command (after `make quickstart`):
  python -m epa_jax.train --config=experiments/quickstart_pairs.py \
    --config.loss.name=ipo --config.workdir=runs/quickstart_ipo
KTO needs --config.data.n_weak=1; `python -m epa_jax.losses` lists all losses.
"""

from ml_collections import ConfigDict

from epa_jax.config import defaults


def get_config() -> ConfigDict:
    """Values of the run: IPO, else those of the quickstart's DPO."""
    config = defaults()
    config.workdir = 'runs/quickstart_pairs'
    config.steps = 150
    config.model.path = 'runs/quickstart/sft/export'
    config.model.remat = 'dots'
    config.data.train = 'runs/quickstart/pairs.jsonl'
    config.data.eval = 'runs/quickstart/pairs_held_out.jsonl'
    config.data.max_prompt_tokens = 16
    config.data.max_response_tokens = 32
    config.data.overlong_response = 'error'
    config.loss.name = 'ipo'
    config.loss.beta = 0.5
    config.optim.lr = 3e-4
    config.optim.b2 = 0.98
    config.batch.prompts = 32
    config.batch.row_length = 256
    config.log.every = 30
    return config
