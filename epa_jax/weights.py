"""The weights of a run: what is trained, and what stands frozen beside it."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError, lora_modules
from epa_jax.formats.load import load_model, load_spec
from epa_jax.frozen import Frozen
from epa_jax.models import lora as lora_lib
from epa_jax.models import transformer
from epa_jax.models.lora import Lora
from epa_jax.models.spec import ModelSpec
from epa_jax.reference import fingerprint
from epa_jax.schema import LoraConfig, RunConfig
from epa_jax.types import Params

log = logging.getLogger(__name__)

BASE = 'base_fingerprint'


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model as a run starts from it.

    Attributes:
      spec: architecture.
      base: the whole model.
      lora: which adapters are trained; None when the whole model is.
      adapters: those, or None.
    """

    spec: ModelSpec
    base: Params
    lora: Lora | None = None
    adapters: Params | None = None

    @property
    def trained(self) -> Params:
        """What is trained."""
        return self.base if self.adapters is None else self.adapters

    def frozen(self, reference: Params | None = None, in_step: bool = False) -> Frozen:
        """What stands beside it.

        Args:
          reference: parameters of another model; None is the model itself.
          in_step: whether the reference runs in the step.
        """
        if self.lora is not None:
            return Frozen(self.base, reference, in_step, self.lora.scale)
        if in_step and reference is None:
            reference = jax.tree.map(jnp.copy, self.base)  # the policy's are donated
        return Frozen(None, reference, in_step)


def lora_of(cfg: LoraConfig) -> Lora | None:
    """The adapters that a configuration asks for, or None."""
    if cfg.rank == 0:
        return None
    matrices = tuple(name.removesuffix('_proj') for name in lora_modules(cfg.modules))
    return Lora(cfg.rank, cfg.alpha, matrices, cfg.rank_stabilized)


def load_weights(run: RunConfig, mesh: Mesh) -> Weights:
    """Loads the model onto the mesh and, where asked for, makes its adapters.

    Raises:
      FormatError, SpecError: as `formats.load.load_model`.
      ConfigError: a dimension that the mesh does not divide.
    """
    spec, base = _load(run.model.path, run, mesh)
    lora = lora_of(run.lora)
    if lora is None:
        if run.model.param_dtype == 'bfloat16':
            log.warning(
                'model.param_dtype=bfloat16 loses every update below 1/256 of its '
                'parameter; float32 parameters with model.compute_dtype=bfloat16 lose none'
            )
        return Weights(spec, base)
    where = adapter_shardings(spec, lora, mesh)
    key = jax.random.fold_in(jax.random.key(run.seed), 1)
    make = jax.jit(lambda key: lora_lib.init_adapters(spec, lora, key), out_shardings=where)
    return Weights(spec, base, lora, make(key))


def adapter_shardings(spec: ModelSpec, lora: Lora, mesh: Mesh) -> Params:
    """Where adapters live: as the axes of their matrices do."""
    shapes = lora_lib.abstract_adapters(spec, lora)
    return sharding.param_shardings(mesh, shapes, lora_lib.logical_axes(spec, lora))


def base_fingerprint(params: Params) -> dict[str, str]:
    """What checkpoints of adapters say of their base."""
    return {BASE: fingerprint(params)}


def check_base(saved: Mapping[str, Any], params: Params, origin: str) -> None:
    """Refuses a base that is not the one that adapters were trained on.

    Args:
      saved: what a checkpoint says, with `base_fingerprint`.
      params: of the base as loaded.
      origin: of the checkpoint, for the message.

    Raises:
      CheckpointError: it is another.
    """
    if saved.get(BASE) != fingerprint(params):
        raise CheckpointError(
            f'{origin}: its adapters were trained on other weights than those that '
            'model.path and model.param_dtype give now; restore that model'
        )


def flops_per_token(weights: Weights) -> float:
    """Floating-point operations of a training step for each token, attention left out.

    A parameter that a token is multiplied with costs 2 forward, 2 for the gradient of
    the token, and 2 for its own gradient where it has one.
    """
    spec = weights.spec
    looked_up = 0 if spec.tie_embeddings else spec.vocab_size * spec.d_model
    whole = transformer.num_params(spec) - looked_up
    if weights.adapters is None:
        return 6.0 * whole
    return 4.0 * whole + 6.0 * sum(leaf.size for leaf in jax.tree.leaves(weights.adapters))


def load_reference(run: RunConfig, weights: Weights, mesh: Mesh) -> Params | None:
    """The model at reference.path; None where that is empty, which is the model itself.

    Raises:
      ConfigError: it has another architecture.
    """
    if not run.reference.path:
        return None
    spec, params = _load(run.reference.path, run, mesh)
    if spec != weights.spec:
        differing = [
            f.name
            for f in dataclasses.fields(spec)
            if getattr(spec, f.name) != getattr(weights.spec, f.name)
        ]
        raise ConfigError(
            f'reference.path={run.reference.path}: differs from the policy in '
            f'{", ".join(differing)}; expected the same architecture'
        )
    return params


def _load(path: str, run: RunConfig, mesh: Mesh) -> tuple[ModelSpec, Params]:
    spec = load_spec(path)
    shapes = transformer.abstract_params(spec, run.model.param_dtype)
    where = sharding.param_shardings(mesh, shapes, transformer.logical_axes(spec))
    return load_model(path, run.model.param_dtype, where)
