"""Minimisers of population losses, to the last digits of float64, and their spread."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from epa_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Fit:
    """Where a minimisation ended.

    Attributes:
      params: the minimiser found.
      loss: its loss.
      gradient_norm: of the loss there; how well it converged.
      steps: iterations made.
    """

    params: Params
    loss: float
    gradient_norm: float
    steps: int


def minimise(
    loss: Callable[..., jax.Array],
    start: Params,
    *data: Any,
    max_steps: int = 500,
    tolerance: float = 1e-10,
) -> Fit:
    """L-BFGS from `start` until the gradient is below `tolerance`.

    Args:
      loss: (params, *data) -> float []; compiled once for each function.
      start: a pytree; float64 leaves need `jax.enable_x64`.
      data: pytrees handed to `loss`.
      max_steps: iterations at most.
      tolerance: Euclidean norm of the gradient at which to stop.
    """
    params, value, norm, steps = _lbfgs(loss, start, data, max_steps, tolerance)
    return Fit(params, float(value), float(norm), int(steps))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _lbfgs(
    loss: Callable[..., jax.Array],
    start: Params,
    data: tuple[Any, ...],
    max_steps: int,
    tolerance: float,
) -> tuple[Params, jax.Array, jax.Array, jax.Array]:
    def of_data(params: Params) -> jax.Array:
        return loss(params, *data)

    def found(params: Params) -> tuple[jax.Array, jax.Array]:
        value, grad = jax.value_and_grad(of_data)(params)
        return value, optax.tree.norm(grad)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(of_data)

    def step(carry: tuple[Params, Any, Any, Any, Any]) -> tuple[Params, Any, Any, Any, Any]:
        params, state, count, *_ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=of_data
        )
        new = optax.apply_updates(params, updates)
        return new, state, count + 1, value, optax.tree.norm(grad)

    def unfinished(carry: tuple[Params, Any, Any, Any, Any]) -> jax.Array:
        _, _, count, _, norm = carry
        return (count == 0) | ((count < max_steps) & (norm > tolerance))

    # the first step replaces them
    unknown = [jnp.full((), jnp.inf, x.dtype) for x in jax.eval_shape(found, start)]
    first = (start, optimizer.init(start), jnp.zeros((), jnp.int32), *unknown)
    params, _, count, _, _ = jax.lax.while_loop(unfinished, step, first)
    return params, *found(params), count


def descend(
    loss: Callable[..., jax.Array], start: Params, *data: Any, steps: int, lr: float
) -> Fit:
    """Adam with a cosine to 0, for neural policies, whose float32 stops line searches.

    Args:
      loss: (params, *data) -> float []; compiled once for each function.
      start: a pytree.
      data: pytrees handed to `loss`.
      steps: updates.
      lr: first learning rate.
    """
    params, value, norm = _adam(loss, start, data, steps, lr)
    return Fit(params, float(value), float(norm), steps)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _adam(
    loss: Callable[..., jax.Array],
    start: Params,
    data: tuple[Any, ...],
    steps: int,
    lr: float,
) -> tuple[Params, jax.Array, jax.Array]:
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, steps), b2=0.99)

    def step(_: jax.Array, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *data), state, params)
        return optax.apply_updates(params, updates), state

    params, _ = jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))
    value, grad = jax.value_and_grad(loss)(params, *data)
    return params, value, optax.tree.norm(grad)


def sandwich(
    losses: Callable[[jax.Array], jax.Array], at: jax.Array, weights: jax.Array
) -> jax.Array:
    """Covariance of the minimiser on n independent rows, times n, as n grows: [P, P].

    Inverse curvature, covariance of the rows' gradients, inverse curvature. Directions
    in which the expected loss is flat, such as the constant of logits, are left out.

    Args:
      losses: parameters [P] -> losses of all R rows, [R].
      at: the minimiser of the expected loss, [P]; float64.
      weights: probabilities of the rows, [R].

    References:
      P. Huber, The behavior of maximum likelihood estimates under nonstandard
      conditions, 1967.
    """
    slopes = jax.jacfwd(losses)(at)  # [R, P]
    curvature = jax.hessian(lambda x: jnp.sum(weights * losses(x)))(at)
    inverse = jnp.linalg.pinv(curvature, rtol=1e-12 * at.size)
    return inverse @ (slopes.T @ (weights[:, None] * slopes)) @ inverse
