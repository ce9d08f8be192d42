"""Values and gradients of a loss, compiled once for each loss, shape and precision."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses import make_loss

QUICK = {'xla_backend_optimization_level': 0}  # to compile, not to run


def widen(table):
    """The table with float64 where it had float32."""
    return jax.tree.map(
        lambda a: a.astype(np.float64) if a.dtype == np.float32 else a, table
    )


def precision(table):
    """64-bit arithmetic for a table of float64."""
    wide = table.logps.dtype == np.float64
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def values(loss, table, carried=()):
    """Loss of each prompt as NumPy, in the precision of the table."""
    with precision(table):
        return np.asarray(loss.fn(table, carried))


def value_and_gradients(loss, table):
    """Loss [N], and gradients of its sum by the policy's and the reference's log-probs."""
    with precision(table):
        return jax.tree.map(np.asarray, _measured(loss, table))


def compiled(name, hyperparameters=()):
    """`value_and_gradients` of a loss, as a compiled function of NumPy tables."""
    run = _jitted(name, tuple(hyperparameters))

    def measure(table):
        with precision(table):
            return jax.tree.map(np.asarray, run(table))

    return measure


@functools.cache
def _jitted(name, hyperparameters):
    loss = make_loss(name, dict(hyperparameters))
    return jax.jit(functools.partial(_measured, loss), compiler_options=QUICK)


def _measured(loss, table):
    def total(logps, ref_logps):
        losses = loss.fn(table.replace(logps=logps, ref_logps=ref_logps))
        return jnp.sum(losses), losses

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    gradients, losses = gradient(jnp.asarray(table.logps), jnp.asarray(table.ref_logps))
    return losses, gradients
