"""SmolLM2-135M-Instruct on n-ary rated responses (AlpacaEval 2 annotations).

Claim: EPA 1:3:4 uses rated responses that pairs throw away.
Model: SmolLM2-135M-Instruct, 4-bit weights dequantised from a GGUF: `make smollm2`.
Data: 603 prompts with 8 responses and ratings each (CC BY-NC 4.0); 100 held out by a
  fixed seed (experiments/README.md). The best response is the chosen one.
Hardware and wall-clock: see experiments/results/README.md for what was measured.
Command: python -m epa_jax.train --config=experiments/smollm2_rated.py
On a CPU add --config.steps=20; on a GPU or TPU add
--config.model.compute_dtype=bfloat16.
"""

from ml_collections import ConfigDict

from epa_jax.config import defaults


def get_config() -> ConfigDict:
    """Values of the run."""
    config = defaults()
    config.workdir = 'runs/smollm2_rated_epa'
    config.epochs = 1.0
    config.model.path = 'models/SmolLM2-135M-Instruct.gguf'
    config.data.train = '../shared/data/alpaca_eval_nary.jsonl.gz'
    config.data.eval_examples = 100
    config.data.max_prompt_tokens = 384
    config.data.max_response_tokens = 256
    config.data.n_strong = 3
    config.data.n_weak = 4
    config.batch.prompts = 8
    config.loss.name = 'epa'
    config.loss.beta = 0.1
    config.optim.lr = 1e-5
    config.optim.b2 = 0.95
    config.log.eval_every = 30
    return config
