"""Preference metrics on held-out examples."""

from collections.abc import Callable, Iterable
from typing import Any

from epa_jax.metrics import finalise
from epa_jax.types import PackedBatch, Params, WeightedSum


def evaluate(
    measure: Callable[[Params, Params | None, PackedBatch], dict[str, WeightedSum]],
    place: Callable[[PackedBatch], Any],
    params: Params,
    ref_params: Params | None,
    batches: Iterable[PackedBatch],
) -> dict[str, float]:
    """Means over all prompts of `batches`, under the names of training with 'eval/'.

    Args:
      measure: `programs.Programs.measure`.
      place: `programs.Programs.place`.
      params: the policy.
      ref_params: an in-step reference, or None.
      batches: one pass over the held-out rows.

    Raises:
      ValueError: no batches.
    """
    sums: dict[str, WeightedSum] = {}
    for batch in batches:
        part = measure(params, ref_params, place(batch))
        sums = {k: sums[k] + v for k, v in part.items()} if sums else part
    if not sums:
        raise ValueError('evaluation without examples: set data.eval or data.eval_examples')
    return {f'eval/{name}': value for name, value in finalise(sums).items()}
