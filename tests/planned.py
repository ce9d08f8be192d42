"""A tiny run to plan: its architecture alone, no weights and no data."""

import json

from epa_jax.config import defaults
from epa_jax.models.hf_config import spec_to_hf
from tests import small_run, tiny


def config(folder, spec=tiny.SPEC, **changes):
    """A resolved configuration; `changes` are dotted keys with __ for the dots."""
    path = folder / 'config.json'
    path.write_text(json.dumps(spec_to_hf(spec, 'float32')))
    out = defaults()
    out.workdir = str(folder / 'run')
    out.model.path = str(folder / 'absent')
    out.model.logprob_chunk = 32
    out.data.train = 'absent'
    out.data.n_weak = 2
    out.batch.prompts = 32
    out.batch.row_length = 128
    out.plan.architecture = str(path)
    out.plan.examples = 320
    out.plan.prompt_tokens = 20
    out.plan.response_tokens = 10
    return small_run.with_keys(out, changes)
