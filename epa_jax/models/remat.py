"""What the backward pass keeps of a layer, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# What attention gives its gradients. The products in it are of two activations, which
# 'dots' leaves alone, or are hidden in a kernel; so its results are known by name.
SAVED = 'attention'
CUDNN = 'dot_product_attention_fwd'  # JAX's own, whose results have no name


def saved(x: jax.Array) -> jax.Array:
    """A result of attention, to be kept wherever products are."""
    return checkpoint_name(x, SAVED)


def rematerialised(body: Callable, remat: str) -> Callable:
    """A layer that keeps less than automatic differentiation asks for.

    Args:
      body: (carry, weights) -> (carry, output), to be scanned.
      remat: 'none', 'dots' or 'full', see `schema.ModelConfig.remat`.

    Raises:
      ValueError: another one.
    """
    policies = jax.checkpoint_policies
    if remat == 'none':
        return body
    if remat == 'dots':
        policy = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, _attention
        )
    elif remat == 'full':
        policy = policies.nothing_saveable
    else:
        raise ValueError(f'remat {remat!r}: expected none, dots or full')
    # the layers are scanned, so there is no common subexpression to protect
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def _attention(primitive: Any, *args: Any, **params: Any) -> Any:
    """The policy that keeps the results of attention."""
    if primitive.name.startswith(CUDNN):
        return True
    return jax.checkpoint_policies.save_only_these_names(SAVED)(primitive, *args, **params)
