"""MPO, algorithm 1, on what `make quickstart` leaves behind: pairs, SFT and text.

Claim: without a reference, the likelihood of SFT data and text holds the policy while it
  learns the pairs; compare with neither: --config.sft.train= --config.sft.eval=
  --config.pretrain.train= --config.pretrain.eval= --config.workdir=runs/mpo_quickstart_bare
Data: runs/quickstart/pairs.jsonl and demonstrations.jsonl (SFT: completions after
  prompts; text: both as a document).
Model: runs/quickstart/sft/export, a LLaMA of 0.94 million parameters.
Hardware and wall-clock: two CPU cores, about a minute.
Command (after `make quickstart`):
  python -m epa_jax.train --config=experiments/mpo_quickstart.py
"""

from ml_collections import ConfigDict

from experiments import quickstart_pairs


def get_config() -> ConfigDict:
    """Values of the run: those of the quickstart's DPO, with streams for a reference."""
    config = quickstart_pairs.get_config()
    config.workdir = 'runs/mpo_quickstart'
    config.loss.name = 'mpo'
    config.sft.train = 'runs/quickstart/demonstrations.jsonl'
    config.sft.eval = 'runs/quickstart/demonstrations_held_out.jsonl'
    config.sft.weight = 0.1
    config.sft.sequences = 32
    config.pretrain.train = 'runs/quickstart/demonstrations.jsonl'
    config.pretrain.eval = 'runs/quickstart/demonstrations_held_out.jsonl'
    config.pretrain.max_tokens = 64
    config.pretrain.weight = 0.01
    config.pretrain.sequences = 32
    return config
