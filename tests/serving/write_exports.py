"""Exports of several kinds of model, each with what this package says of a text.

Command: python -m tests.serving.write_exports FOLDER, then open_with_vllm.py.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from epa_jax.evals.generation import sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import score
from epa_jax.formats.export import export_model
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec, RopeScaling
from epa_jax.types import Params
from tests import small_run, tiny

BASE = dataclasses.replace(
    tiny.SPEC, d_model=64, n_heads=4, n_kv_heads=2, head_dim=32, max_positions=128
)
SPECS = {
    'grouped_heads': BASE,
    'tied': dataclasses.replace(BASE, tie_embeddings=True, n_kv_heads=4),
    'biases': dataclasses.replace(BASE, attention_bias=True, mlp_bias=True),
    'window': dataclasses.replace(BASE, model_type='mistral', sliding_window=9),
    'scaled_rope': dataclasses.replace(BASE, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32)),
}
PROMPT, ANSWER = 12, 30
COMPUTE = transformer.Compute()


def random_params(spec: ModelSpec) -> Params:
    """Every parameter matters, norms and biases included."""
    rng = np.random.default_rng(0)

    def leaf(path, x):
        noise = rng.normal(size=x.shape).astype(np.float32)
        return 1 + 0.3 * noise if 'norm' in jax.tree_util.keystr(path) else 0.2 * noise

    return jax.tree_util.tree_map_with_path(
        leaf, transformer.abstract_params(spec, 'float32')
    )


def expected(spec: ModelSpec, params: Params) -> dict:
    """A text, its tokens, the log-prob of each after the prompt, and greedy tokens."""
    words = np.random.default_rng(1).choice(small_run.WORDS, PROMPT + ANSWER)
    tokenizer = small_run.tokenizer()
    ids = np.array(tokenizer(' '.join(words))['input_ids'], np.int32)
    prefixes = [[ids[PROMPT:end]] for end in range(PROMPT + 1, len(ids) + 1)]
    totals = score(params, spec, COMPUTE, [ids[:PROMPT]] * len(prefixes), prefixes).logps
    greedy = sample(
        params,
        spec,
        COMPUTE,
        [ids],
        Sampling(20, (tokenizer.eos_token_id,), temperature=0.0),
        key=jax.random.key(0),
    )
    return {
        'text': ' '.join(words),
        'ids': ids.tolist(),
        'logps': np.diff(totals[:, 0], prepend=0).tolist(),
        'greedy': greedy[0].tolist(),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    for name, spec in SPECS.items():
        params = random_params(spec)
        export_model(
            folder / name,
            spec,
            params,
            small_run.tokenizer(),
            dtype='float32',
            overwrite=True,
        )
        (folder / f'{name}.json').write_text(json.dumps(expected(spec, params)))


if __name__ == '__main__':
    main()
