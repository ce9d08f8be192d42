"""DPO on a pretrained LLaMA of 260 thousand parameters, in seconds.

Claim: none; the smallest real run, to see the whole path work: 30 steps on 240 pairs at
  a learning rate for so small a model. For your own model copy starter.py.
Model: stories260K (TinyStories), as a Hugging Face folder.
Data: Anthropic HH-RLHF harmless-base test pairs (experiments/README.md says where to get
  both; --config.model.path=FOLDER --config.data.train=FILE say where they are).
Hardware: 2 CPU cores, under a minute.
Command: python -m epa_jax.train --config=experiments/stories260k_dpo.py
"""

from ml_collections import ConfigDict

from epa_jax.config import defaults


def get_config() -> ConfigDict:
    """Values of the run."""
    config = defaults()
    config.workdir = 'runs/stories260k_dpo'
    config.steps = 30
    config.model.path = '../shared/data/stories260k'
    config.model.remat = 'dots'
    config.data.train = '../shared/data/hh_rlhf_harmless_test.jsonl.gz'
    config.data.bad_lines = 'skip'  # 5 pairs differ before their last turn
    config.data.max_examples = 240
    config.data.eval_examples = 60
    config.data.max_prompt_tokens = 192
    config.data.max_response_tokens = 160
    config.data.n_strong = 1
    config.data.n_weak = 0
    config.batch.prompts = 8
    config.loss.name = 'dpo'
    config.loss.beta = 0.1
    config.optim.lr = 1e-4
    config.log.every = 5
    return config
