"""The likelihood terms of a step: text streams beside the preference loss.

With the weights w_s of the configuration, a step descends

    mean over prompts of the preference loss + sum over streams s of w_s * NLL_s,

NLL_s being the mean over all tokens of stream s in the step, however they are packed.
"""

from collections.abc import Iterable, Mapping

import jax

from epa_jax.data.mixture import Portion
from epa_jax.frozen import Frozen
from epa_jax.metrics import finalise
from epa_jax.programs import Programs
from epa_jax.train_step import Accumulator, Metrics
from epa_jax.types import PackedBatch, Params


def add_streams(
    programs: Programs,
    total: Accumulator,
    params: Params,
    frozen: Frozen,
    portions: Mapping[str, Portion],
    weights: Mapping[str, float],
    prompts: int,
) -> tuple[Accumulator, Metrics]:
    """Adds the gradients of all streams to those of the preference loss.

    Args:
      programs: of the run.
      total: sums over the prompts of the step; donated.
      params: what is trained.
      frozen: beside it.
      portions: by stream.
      weights: of each stream.
      prompts: what the update will divide sums by.

    Returns:
      The sums, and the metric 'NAME/nll' of each stream.
    """
    metrics: Metrics = {}
    for name, (batches, tokens) in portions.items():
        scale = weights[name] * prompts / tokens
        for batch in batches:
            total, nll = programs.imitate(
                total, params, frozen, programs.place(batch), scale
            )
            key = f'{name}/nll'
            metrics[key] = metrics[key] + nll if key in metrics else nll
    return total, metrics


def measure_streams(
    programs: Programs,
    params: Params,
    frozen: Frozen,
    held_out: Mapping[str, Iterable[PackedBatch]],
) -> dict[str, float]:
    """Mean negative log-likelihood per token of held-out text, 'eval/NAME/nll', nats.

    Batches are asked for as `evals.preference.evaluate` does.
    """
    out: Metrics = {}
    for name, batches in held_out.items():
        for batch in batches:
            nll = programs.nll(params, frozen, programs.place(batch))
            key = f'eval/{name}/nll'
            jax.block_until_ready(out.get(key))
            out[key] = out[key] + nll if key in out else nll
    return finalise(out)
