"""Optimizers and learning-rate schedules, from optax's parts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from epa_jax.schema import OptimConfig
from epa_jax.types import Params

# Root mean square to which Adafactor limits each array's update (the paper's d).
ADAFACTOR_CLIP = 1.0


def make_optimizer(
    cfg: OptimConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run.

    Gradients are clipped by their global norm, scaled by the named method, decayed, and
    multiplied by the learning rate: update = -lr * (scaled + weight_decay * param).

    All state and arithmetic is float32 whatever the dtype of the parameters, but for
    the first moment, which is kept in `mu_dtype` between updates.
    `optax.apply_updates` then rounds to it, so in bfloat16 an update below 1/256 of its
    parameter is lost.

    Args:
      cfg: the configuration.
      total_steps: updates in the whole run, at least 1.

    Returns:
      The transformation, and the learning rate by update (0 is the first).
    """
    schedule = make_schedule(cfg, total_steps)
    parts = [_METHODS[cfg.name](cfg)]
    if cfg.clip_norm > 0:
        parts.insert(0, optax.clip_by_global_norm(cfg.clip_norm))
    if cfg.weight_decay > 0:
        parts.append(optax.add_decayed_weights(cfg.weight_decay, mask=decay_mask))
    parts.append(optax.scale_by_learning_rate(schedule))
    return in_float32(optax.chain(*parts)), schedule


def make_schedule(cfg: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by update: linear warm-up from 0, then the named decay.

    Update t of the w warm-up updates uses lr * t / w, starting at t = 0; the decay
    reaches lr * final_lr_ratio at t = total_steps, just after the last update. This is
    the convention of optax and of Hugging Face's schedules.
    """
    warmup = round(cfg.warmup_ratio * total_steps)
    decay = _SCHEDULES[cfg.schedule](cfg, max(total_steps - warmup, 1))
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, cfg.lr, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def decay_mask(params: Params) -> Params:
    """True for matrices, False for norms and biases.

    Decided by name: layers are stacked, so the number of axes tells nothing.
    """

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        name = path[-1].key
        return name != 'norm' and not name.endswith(('_norm', '_bias'))

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Shows `inner` float32 gradients and parameters, so that its state is float32."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Params) -> optax.OptState:
        return inner.init(cast(params))

    def update(
        grads: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        return inner.update(cast(grads), state, cast(params))

    return optax.GradientTransformation(init, update)


def _adamw(cfg: OptimConfig) -> optax.GradientTransformation:
    inner = optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps)
    return inner if cfg.mu_dtype == 'float32' else _mu_kept_in(inner, cfg.mu_dtype)


def _mu_kept_in(
    inner: optax.GradientTransformation, dtype: str
) -> optax.GradientTransformation:
    """Adam in float32 whose first moment is rounded between updates.

    optax's own mu_dtype also rounds b1 and its product: 0.9 becomes 0.8984 in bfloat16,
    and updates 1.5 % smaller, for its bias correction takes 0.9.
    """

    def with_mu(state: Any, dtype: Any) -> optax.OptState:
        return state._replace(mu=jax.tree.map(lambda m: m.astype(dtype), state.mu))

    def init(params: Params) -> optax.OptState:
        return with_mu(inner.init(params), dtype)

    def update(
        grads: Params, state: optax.OptState, params: Params | None = None
    ) -> tuple[Params, optax.OptState]:
        updates, state = inner.update(grads, with_mu(state, jnp.float32), params)
        return updates, with_mu(state, dtype)

    return optax.GradientTransformation(init, update)


def _rmsprop(cfg: OptimConfig) -> optax.GradientTransformation:
    """Adam without its first moment; unlike PyTorch's, with bias correction.

    Without it the first update would be larger by 1 / sqrt(1 - b2).
    """
    return optax.scale_by_rms(
        decay=cfg.b2, eps=cfg.eps, eps_in_sqrt=False, bias_correction=True
    )


def _adafactor(cfg: OptimConfig) -> optax.GradientTransformation:
    """Factored second moments, decay schedule and epsilon of the paper.

    Not multiplied by the scale of the parameters: the learning rate means what it does
    for the other methods. The limit on an update's root mean square is over a whole
    array, which holds all layers.

    Reference: Shazeer and Stern, 2018, arXiv:1804.04235.
    """
    return optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(ADAFACTOR_CLIP)
    )


def _cosine(cfg: OptimConfig, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(cfg.lr, steps, alpha=cfg.final_lr_ratio)


def _linear(cfg: OptimConfig, steps: int) -> optax.Schedule:
    return optax.linear_schedule(cfg.lr, cfg.lr * cfg.final_lr_ratio, steps)


def _constant(cfg: OptimConfig, steps: int) -> optax.Schedule:
    return optax.constant_schedule(cfg.lr)


_METHODS: Mapping[str, Callable[[OptimConfig], optax.GradientTransformation]] = {
    'adamw': _adamw,
    'adafactor': _adafactor,
    'rmsprop': _rmsprop,
}
_SCHEDULES: Mapping[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    'cosine': _cosine,
    'linear': _linear,
    'constant': _constant,
}
