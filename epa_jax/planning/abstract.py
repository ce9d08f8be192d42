"""The step of a run from shapes alone: the programs of training, and what they are given.

Nothing here computes: parameters, state and batches are `jax.ShapeDtypeStruct` leaves with
the shardings that `prepare` would give them, and the programs are those of
`programs.build`.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from epa_jax import programs as programs_lib
from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data import packing
from epa_jax.formats import files
from epa_jax.formats.load import load_spec
from epa_jax.frozen import Frozen
from epa_jax.losses import Loss
from epa_jax.models import lora as lora_lib
from epa_jax.models import transformer
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.lora import Lora
from epa_jax.models.spec import ModelSpec
from epa_jax.optim import make_optimizer
from epa_jax.planning.workload import Workload, workload
from epa_jax.prepare import compute_of, loss_of
from epa_jax.schema import RunConfig
from epa_jax.train_step import Coupled, Objective
from epa_jax.types import PackedBatch, Params, TrainState
from epa_jax.weights import adapter_shardings, lora_of


@dataclasses.dataclass(frozen=True)
class Call:
    """One program of a step.

    Attributes:
      name: as in `programs.Programs`.
      function: the jitted function that training calls.
      args: shapes of what it is given.
      times: how often a step calls it.
      beside: bytes per device that stay in memory and are not given to it.
    """

    name: str
    function: jax.stages.Wrapped
    args: tuple
    times: float
    beside: int


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """A run as shapes.

    Attributes:
      run: its configuration.
      spec: architecture.
      lora: adapters that are trained, or None.
      loss: the loss.
      mesh: devices.
      work: how much there is to do.
      state: the train state.
      frozen: what stands beside it.
      calls: programs of a step.
    """

    run: RunConfig
    spec: ModelSpec
    lora: Lora | None
    loss: Loss
    mesh: Mesh
    work: Workload
    state: TrainState
    frozen: Frozen
    calls: list[Call]

    @property
    def reference_in_step(self) -> bool:
        """Whether a step runs the reference too."""
        return self.frozen.in_step


def spec_of(run: RunConfig) -> ModelSpec:
    """The architecture at `model.path`, weights or none, else of `plan.architecture`.

    Raises:
      ConfigError: neither is there.
      FormatError, SpecError: as `formats.load.load_spec`.
    """
    config = Path(run.model.path) / 'config.json'
    if config.is_file():
        return spec_from_hf(files.read_json(config), str(config))
    if Path(run.model.path).exists():
        return load_spec(run.model.path)
    planned = Path(run.plan.architecture)
    if run.plan.architecture and planned.is_file():
        return spec_from_hf(files.read_json(planned), str(planned))
    raise ConfigError(
        f'model.path={run.model.path} does not exist here; give the architecture to plan '
        "with: plan.architecture=FILE, a Hugging Face model's config.json"
    )


def abstract_run(run: RunConfig, devices: Sequence[Any]) -> AbstractRun:
    """Builds a run's programs for devices, without weights or data in memory.

    Raises:
      ConfigError: keys that contradict one another, or that the devices contradict.
    """
    loss, spec = loss_of(run), spec_of(run)
    mesh = sharding.make_mesh(run.mesh, devices)
    work = workload(run, mesh, loss)
    shapes = transformer.abstract_params(spec, run.model.param_dtype)
    where = sharding.param_shardings(mesh, shapes, transformer.logical_axes(spec))
    base = jax.tree.map(_struct, shapes, where)
    lora, trained = lora_of(run.lora), base
    if lora is not None:
        adapters = lora_lib.abstract_adapters(spec, lora)
        trained = jax.tree.map(_struct, adapters, adapter_shardings(spec, lora, mesh))
    frozen = _frozen(run, loss, lora, base)
    optimizer, _ = make_optimizer(run.optim, work.steps)
    state = programs_lib.abstract_state(trained, optimizer, mesh, loss.nothing_carried())
    cached = run.reference.mode == 'cached' and loss.needs_reference
    example = packing.empty(work.layout.rows, work.layout, with_reference=cached)
    objective = Objective(spec, compute_of(run, mesh), loss)
    built = programs_lib.build(objective, optimizer, state, example, mesh, frozen)
    total = programs_lib.abstract_total(objective, state, example, mesh, frozen)
    resident = device_bytes((state, frozen, total))
    made = _Maker(built, mesh, state, total, frozen, resident)
    calls = made.calls(loss, work, example)
    return AbstractRun(run, spec, lora, loss, mesh, work, state, frozen, calls)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Lists the programs of a step."""

    programs: programs_lib.Programs
    mesh: Mesh
    state: TrainState
    total: Any
    frozen: Frozen
    resident: int

    def calls(self, loss: Loss, work: Workload, example: PackedBatch) -> list[Call]:
        built, params, total = self.programs, self.state.params, self.total
        batch, often = placed(example, self.mesh), work.micro_batches
        given = (params, self.frozen, batch)
        out = []
        if loss.needs.couples_prompts:
            out.append(self._call('table', built.table, given, often))
            coupled = self._coupled(work)
            out.append(self._call('pull', built.pull, (total, *given, coupled), often))
        else:
            out.append(self._call('accumulate', built.accumulate, (total, *given), often))
        if work.text_micro_batches:
            text = packing.empty(work.text.rows, work.text, with_reference=False)
            args = (total, params, self.frozen, placed(text, self.mesh), 1.0)
            out.append(self._call('imitate', built.imitate, args, work.text_micro_batches))
        update = (self.state, total, self.state.loss_state)
        out.append(self._call('update', built.update, update, 1))
        return out

    def _call(self, name: str, function: Any, args: tuple, times: float) -> Call:
        long_lived = [a for a in args if not isinstance(a, (PackedBatch, Coupled, float))]
        beside = self.resident - device_bytes(long_lived)
        return Call(name, function, args, times, max(beside, 0))

    def _coupled(self, work: Workload) -> Coupled:
        prompts = work.layout.rows * work.layout.groups_per_row
        where = sharding.replicated(self.mesh)

        def struct(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)

        return Coupled(struct(prompts, work.layout.responses), struct(prompts))


def placed(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """Shapes of a batch, where `sharding.place_batch` would put it."""
    where = sharding.rows(mesh)
    return jax.tree.map(lambda x: _struct(x, where), batch)


def device_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree on the device that holds most."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _struct(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _frozen(run: RunConfig, loss: Loss, lora: Lora | None, base: Params) -> Frozen:
    """What `weights.Weights.frozen` would give, as shapes."""
    in_step = loss.needs_reference and run.reference.mode == 'in_step'
    other = base if in_step and (run.reference.path or lora is None) else None
    if lora is not None:
        return Frozen(base, other, in_step, lora.scale)
    return Frozen(None, other, in_step)
