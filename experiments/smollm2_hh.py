"""SmolLM2-135M-Instruct on human preference pairs (HH-RLHF harmless-base).

Claim: EPA with free weak negatives (1:1:2) against DPO (1:1:0) from the same start.
Model: SmolLM2-135M-Instruct, 4-bit weights dequantised from a GGUF: `make smollm2`.
Data: 2,312 pairs of the harmless-base test split, 200 held out by a fixed seed
  (experiments/README.md says where to get it).
Hardware and wall-clock: see experiments/results/README.md for what was measured.
Command (EPA, then DPO):
  python -m epa_jax.train --config=experiments/smollm2_hh.py
  python -m epa_jax.train --config=experiments/smollm2_hh.py --config.loss.name=dpo \
    --config.data.n_weak=0 --config.workdir=runs/smollm2_hh_dpo
On a CPU add --config.steps=30; on a GPU or TPU add
--config.model.compute_dtype=bfloat16.
"""

from ml_collections import ConfigDict

from epa_jax.config import defaults


def get_config() -> ConfigDict:
    """Values of the run."""
    config = defaults()
    config.workdir = 'runs/smollm2_hh_epa'
    config.epochs = 1.0
    config.model.path = 'models/SmolLM2-135M-Instruct.gguf'
    config.data.train = '../shared/data/hh_rlhf_harmless_test.jsonl.gz'
    config.data.bad_lines = 'skip'  # 5 pairs differ before their last turn
    config.data.eval_examples = 200
    config.data.max_prompt_tokens = 384
    config.data.max_response_tokens = 256
    config.data.n_strong = 1
    config.data.n_weak = 2
    config.batch.prompts = 8
    config.loss.name = 'epa'
    config.loss.beta = 0.1
    config.optim.lr = 1e-5
    config.optim.b2 = 0.95
    config.log.eval_every = 100
    return config
