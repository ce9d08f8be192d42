"""Values that all recipes for 7B and 8B models on TPUs share, and those of each machine."""

from ml_collections import ConfigDict

from epa_jax.config import ConfigError, defaults

MACHINES = ('v5e-16', 'v5e-64', 'v5p-8', 'v5p-64')
# rows of a micro-batch, as many as memory takes: its links carry all weights three times
EPA_ROWS = {'v5e-16': 16, 'v5e-64': 64, 'v5p-8': 16, 'v5p-64': 64}
MPO_ROWS = {'v5e-16': 32, 'v5e-64': 64, 'v5p-8': 32, 'v5p-64': 64}


def base(machine: str, architecture: str) -> ConfigDict:
    """Parameters split over all chips, bfloat16 products, layers recomputed.

    On v5e-64 they are split over 16 chips, four times over: XLA has no reduce-scatter
    over all 64 (docs/collectives.md). v5p keeps products instead of recomputing them.

    Args:
      machine: one of `MACHINES`, after the name of the file and a colon.
      architecture: name of a file beside this one, for planning without the weights.

    Raises:
      ConfigError: another machine.
    """
    if machine not in MACHINES:
        raise ConfigError(
            f'machine {machine!r}: expected one of {", ".join(MACHINES)}, after the name '
            'of the file and a colon'
        )
    config = defaults()
    config.model.compute_dtype = 'bfloat16'
    config.model.remat = 'dots' if machine.startswith('v5p') else 'full'
    config.mesh.data = 4 if machine == 'v5e-64' else 1
    config.mesh.fsdp = -1
    config.optim.mu_dtype = 'bfloat16' if machine == 'v5e-16' else 'float32'
    config.plan.architecture = f'experiments/tpu/{architecture}.json'
    config.log.every = 10
    config.checkpoint.every = 100
    return config


def epa_on_ultrafeedback(config: ConfigDict, machine: str) -> None:
    """EPA 1:1:2 on UltraFeedback: the best of four rated responses, one worse, two weak."""
    config.data.train = 'openbmb/UltraFeedback:train'
    config.data.max_prompt_tokens = 512
    config.data.max_response_tokens = 384
    config.data.n_strong = 1
    config.data.n_weak = 2
    config.loss.name = 'epa'
    config.loss.beta = 0.01
    config.optim.lr = 5e-7
    config.batch.prompts = 128
    config.batch.rows = EPA_ROWS[machine]
    config.batch.row_length = 3072
    config.batch.row_lengths = 2
    config.plan.examples = 63967
    config.plan.prompt_tokens = 200
    config.plan.response_tokens = 300


def mpo_on_hh_rlhf(config: ConfigDict, machine: str) -> None:
    """MPO on HH-RLHF pairs, with likelihood of chat responses beside them; no reference.

    Micro-batches of 64 rows hold 64 chat responses, which weigh as much as 32.
    """
    config.data.train = 'Anthropic/hh-rlhf:train'
    config.data.bad_lines = 'skip'
    config.data.max_prompt_tokens = 512
    config.data.max_response_tokens = 256
    config.sft.train = 'HuggingFaceH4/ultrachat_200k:train_sft'
    config.sft.sequences = max(MPO_ROWS[machine], 32)
    config.loss.name = 'mpo'
    config.loss.tokens = 'mean'
    config.loss.beta = 2.0
    config.reference.mode = 'none'
    config.optim.lr = 5e-7
    config.batch.prompts = 256
    config.batch.rows = MPO_ROWS[machine]
    config.batch.row_length = 1024
    config.batch.row_lengths = 2
    config.plan.examples = 160800
    config.plan.prompt_tokens = 125
    config.plan.response_tokens = 45
    config.plan.sft_tokens = 600
