"""MPO, algorithm 1, with SmolLM2-135M-Instruct: pairs, SFT responses and plain text.

Claim: preferences are learned without a reference in memory, and likelihood on SFT data
  and text keeps what the pairs do not touch.
Model: SmolLM2-135M-Instruct, 4-bit weights dequantised from a GGUF: `make smollm2`.
Data: pairs of HH-RLHF harmless-base (as smollm2_hh.py); SFT: the best of eight responses
  to 603 AlpacaEval prompts; text: 5,153 book passages (the contexts of LAMBADA, which is
  therefore no held-out task of this run). experiments/README.md says where to get them.
Hardware and wall-clock: not measured yet; a step on two CPU cores takes about a minute.
Command: python -m epa_jax.train --config=experiments/mpo_smollm2.py
On a CPU add --config.steps=20; on a GPU or TPU add
--config.model.compute_dtype=bfloat16.
"""

from ml_collections import ConfigDict

from experiments import smollm2_hh


def get_config() -> ConfigDict:
    """Values of the run: pairs and optimiser of smollm2_hh.py, with streams."""
    config = smollm2_hh.get_config()
    config.workdir = 'runs/mpo_smollm2'
    config.data.n_weak = 0
    config.loss.name = 'mpo'
    config.loss.tokens = 'mean'  # sums differ by tens of nats: sigmoid would be flat
    config.loss.beta = 2.0
    config.sft.train = '../shared/data/alpaca_eval_nary.jsonl.gz'
    config.sft.eval_examples = 60
    config.sft.weight = 0.1
    config.sft.sequences = 4
    config.pretrain.train = '../shared/data/bench/mosaic_lambada_openai.jsonl'
    config.pretrain.text_key = 'context'
    config.pretrain.append_eos = False  # excerpts, which stop before their last word
    config.pretrain.eval_examples = 200
    config.pretrain.weight = 0.1
    config.pretrain.sequences = 8
    return config
