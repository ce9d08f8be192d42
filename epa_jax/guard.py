"""The check at step 0: a policy that is its own reference has the loss it must have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses import Loss
from epa_jax.types import ResponseTable, Role

# By compute dtype: what losses may differ by, and what log-probs, where that is more to a
# steep loss (IPO's slope is 200 times DPO's). Cached log-probs come from other rows than
# the step's, so sums over a response differ by rounding.
TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}
NATS = {'float32': 1e-2, 'bfloat16': 0.5}


class GuardError(RuntimeError):
    """Policy and reference disagree before any update."""


def check_start(table: ResponseTable, loss: Loss, dtype: str) -> float:
    """Compares the loss at step 0 with its value at log-ratios of exactly 0.

    For DPO that is ln 2, for EPA with N negatives ln(1 + N).

    Args:
      table: response table of a batch, reference included.
      loss: the run's loss.
      dtype: compute dtype; sets the tolerance.

    Returns:
      The mean loss found, nats.

    Raises:
      GuardError: they differ; says by how much and where.
    """
    table = jax.tree.map(jnp.asarray, table)
    real = jnp.any(table.roles == Role.CHOSEN, axis=1)

    def mean_loss(logps: jax.Array) -> jax.Array:
        return jnp.mean(loss.fn(dataclasses.replace(table, logps=logps)), where=real)

    found = float(mean_loss(table.logps))
    expected, slopes = jax.value_and_grad(mean_loss)(table.ref_logps)
    steepness = float(jnp.sum(jnp.abs(jnp.nan_to_num(slopes))))
    tolerance = max(TOLERANCE[dtype], NATS[dtype] * steepness)
    if abs(found - float(expected)) <= tolerance:
        return found
    present = np.asarray(table.roles != Role.PAD)
    logps, ref_logps = np.asarray(table.logps), np.asarray(table.ref_logps)
    gap = np.where(present, np.abs(logps - ref_logps), 0.0)
    prompt, response = np.unravel_index(np.argmax(gap), gap.shape)
    raise GuardError(
        f'step 0: {loss.name} loss is {found:.6f}, but policy = reference gives '
        f'{expected:.6f} (tolerance {tolerance:.3g}). Largest difference of log-probs: '
        f'{gap[prompt, response]:.4f} nats, policy {logps[prompt, response]:.4f} '
        f'against reference {ref_logps[prompt, response]:.4f}, prompt {prompt} of '
        f'the batch, response {response}. The policy does not start from the reference, or '
        f'the two are computed differently; set step0_guard=False only if intended.'
    )
