"""Mistral-7B with EPA 1:1:2 on UltraFeedback, on TPUs.

Claim: none yet; a recipe with a plan. What a plan says of each machine is in
  experiments/plans, with the command; no run of this size has been made.
Model: Mistral-7B-v0.1 (mistralai), Apache-2.0; weights as a Hugging Face folder at
  models/Mistral-7B-v0.1, or --config.model.path=FOLDER.
Data: UltraFeedback, 63,967 prompts; assumed lengths 200 tokens a prompt, 300 a
  response (plan.*), rows of 3,072 tokens.
Hardware: v5e-16, v5e-64, v5p-8 or v5p-64, named after the file.
Command, on every machine of the slice (docs/tpu.md): python -m epa_jax.train \
  --distributed --config=experiments/mistral_7b_epa.py:v5e-16
Plan: python -m epa_jax.plan --config=experiments/mistral_7b_epa.py:v5e-16 --topology=v5e-16
"""

from ml_collections import ConfigDict

from experiments.tpu import recipes


def get_config(machine: str = 'v5e-16') -> ConfigDict:
    """Values of the run on a machine."""
    config = recipes.base(machine, 'mistral_7b')
    config.workdir = 'runs/mistral_7b_epa'
    config.model.path = 'models/Mistral-7B-v0.1'
    recipes.epa_on_ultrafeedback(config, machine)
    return config
