"""The check at step 0: a policy that is its own reference has the loss it must have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses import Loss
from epa_jax.types import ResponseTable, Role

# Loss tolerance by compute dtype. Cached log-probs come from other rows than the step's,
# so sums over a response differ by rounding.
TOLERANCE = {'float32': 1e-3, 'bfloat16': 5e-2}


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
    real = np.asarray(jnp.any(table.roles == Role.CHOSEN, axis=1))
    found = np.asarray(loss.fn(table))[real].mean()
    expected = np.asarray(loss.fn(dataclasses.replace(table, logps=table.ref_logps)))[
        real
    ].mean()
    if abs(found - expected) <= TOLERANCE[dtype]:
        return float(found)
    present = np.asarray(table.roles != Role.PAD)
    logps, ref_logps = np.asarray(table.logps), np.asarray(table.ref_logps)
    gap = np.where(present, np.abs(logps - ref_logps), 0.0)
    prompt, response = np.unravel_index(np.argmax(gap), gap.shape)
    raise GuardError(
        f'step 0: {loss.name} loss is {found:.6f}, but policy = reference gives '
        f'{expected:.6f} (tolerance {TOLERANCE[dtype]}). Largest difference of log-probs: '
        f'{gap[prompt, response]:.4f} nats, policy {logps[prompt, response]:.4f} '
        f'against reference {ref_logps[prompt, response]:.4f}, prompt {prompt} of '
        f'the batch, response {response}. The policy does not start from the reference, or '
        f'the two are computed differently; set step0_guard=False only if intended.'
    )
