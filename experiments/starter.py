"""EPA 1:1:2 on your own model and pairs: a file to copy and change.

Claim: none; defaults that suit a whole model of billions of parameters.
Data: --config.data.train=FILE, any layout of the README; 100 examples are held out. Rated
  responses and pairs both do; DPO is --config.loss.name=dpo --config.data.n_weak=0
Model: --config.model.path=FOLDER, any LLaMA or Mistral.
Hardware: what the model needs; python -m epa_jax.plan tells for TPUs. On a GPU or TPU add
  --config.model.compute_dtype=bfloat16
Command: python -m epa_jax.train --config=experiments/starter.py \
  --config.model.path=FOLDER --config.data.train=FILE --config.workdir=runs/NAME
"""

from ml_collections import ConfigDict

from epa_jax.config import defaults


def get_config() -> ConfigDict:
    """Values of the run; what is not here has the default of epa_jax/schema.py."""
    config = defaults()
    config.workdir = 'runs/starter'
    config.model.path = 'models/policy'  # also its own reference
    config.data.train = 'pairs.jsonl'
    config.data.eval_examples = 100  # measured before, while and after training
    config.data.max_prompt_tokens = 512  # longer ones lose their start, and are counted
    config.data.max_response_tokens = 512  # longer ones lose their end
    config.data.n_strong = 1  # worse responses of the same prompt
    config.data.n_weak = 2  # responses of other prompts
    config.epochs = 1.0
    config.batch.prompts = 16  # of a step; batch.rows bounds what is in memory at once
    config.loss.name = 'epa'
    config.loss.beta = 0.1
    config.optim.lr = 5e-7  # 7B; SmolLM2-135M took 1e-5 here, adapters take 1e-5 to 1e-4
    config.checkpoint.every = 100  # steps that an interruption may cost
    config.log.every = 10
    config.log.eval_every = 100
    return config
