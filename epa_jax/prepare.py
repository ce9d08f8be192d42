"""From a configuration to everything that a run needs before its first step."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from epa_jax import programs as programs_lib
from epa_jax import sharding
from epa_jax.batches import Batches, make_batches
from epa_jax.cached_reference import CachedReference
from epa_jax.config import ConfigError
from epa_jax.data import packing
from epa_jax.data.load import Datasets
from epa_jax.data.report import data_report, render
from epa_jax.data.streams import Stream
from epa_jax.formats.tokenizer import check_vocabulary
from epa_jax.frozen import Frozen
from epa_jax.limits import MOST_STEPS
from epa_jax.loss_config import LossConfig
from epa_jax.losses import (
    LOSSES,
    Loss,
    LossDef,
    check_needs,
    make_loss,
    needs_ratings,
)
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.optim import make_optimizer
from epa_jax.schema import RunConfig
from epa_jax.train_step import Objective, init_state
from epa_jax.types import TrainState
from epa_jax.weights import Weights, flops_per_token, load_reference, load_weights

log = logging.getLogger(__name__)

GPU_VOCAB_BLOCK = 16384

# Told of the steps of a run and of its data report when only the reference's pass is left
# to do, which it surrounds. What it yields is called after every batch of the pass.
Attend: TypeAlias = Callable[
    [int, Mapping[str, Any]], contextlib.AbstractContextManager[Callable[[], None]]
]


@contextlib.contextmanager
def _unattended(
    total_steps: int, report: Mapping[str, Any]
) -> Iterator[Callable[[], None]]:
    yield lambda: None


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, ready to start.

    Attributes:
      run: its configuration.
      spec: architecture.
      tokenizer: of the model.
      mesh: the devices.
      loss: the loss.
      optimizer: the optimizer.
      schedule: learning rate by step.
      programs: the compiled functions.
      abstract: shapes and shardings of the train state.
      weights: of the model as the run starts.
      frozen: what stands beside the trained parameters.
      batches: of training and of evaluation.
      stream_weights: of the likelihood of each stream, by name.
      total_steps: optimiser steps in all.
      report: see `data.report.data_report`.
    """

    run: RunConfig
    spec: ModelSpec
    tokenizer: PreTrainedTokenizerBase
    mesh: Mesh
    loss: Loss
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    programs: programs_lib.Programs
    abstract: TrainState
    weights: Weights
    frozen: Frozen
    batches: Batches
    stream_weights: Mapping[str, float]
    total_steps: int
    report: dict[str, Any]

    def initial_state(self) -> TrainState:
        """The train state before the first update, on the mesh."""
        make = jax.jit(
            lambda params: init_state(params, self.optimizer, self.loss.nothing_carried()),
            out_shardings=programs_lib.shardings(self.abstract),
        )
        return make(self.weights.trained)


def loss_of(run: RunConfig, losses: Mapping[str, LossDef] = LOSSES) -> Loss:
    """The run's loss, checked against the rest of the run.

    Args:
      run: the configuration.
      losses: that `loss.name` may name.

    Raises:
      ConfigError: see `losses.make_loss` and `losses.check_needs`.
    """
    given = {
        field.name: getattr(run.loss, field.name)
        for field in dataclasses.fields(LossConfig)
        if field.name != 'name'
    }
    loss = make_loss(run.loss.name, given, losses)
    check_needs(
        loss,
        n_strong=run.data.n_strong,
        n_weak=run.data.n_weak,
        reference_mode=run.reference.mode,
    )
    return loss


def prepare(
    run: RunConfig,
    datasets: Datasets,
    tokenizer: PreTrainedTokenizerBase,
    streams: Sequence[Stream] = (),
    losses: Mapping[str, LossDef] = LOSSES,
    attend: Attend = _unattended,
) -> Job:
    """Loads the model, caches the reference and builds the step's programs.

    Args:
      run: the configuration.
      datasets: tokenised examples.
      tokenizer: that of the model.
      streams: text beside the preference data.
      losses: that `loss.name` may name.
      attend: what watches over the reference's pass.

    Raises:
      ConfigError: keys that the model, the devices or the data contradict.
    """
    loss = loss_of(run, losses)
    if needs_ratings(loss, run.data.n_strong):
        _check_ratings(datasets, loss)
    mesh = sharding.make_mesh(run.mesh)
    total_steps = steps_of(run, len(datasets.train))
    batches = make_batches(run, datasets, streams, mesh, total_steps)
    weights = load_weights(run, mesh)
    spec = weights.spec
    _check_positions(spec, run)
    check_vocabulary(tokenizer, spec)
    report = data_report(
        datasets, batches.train, total_steps, flops_per_token(weights), streams
    )
    log.info('%s', render(report))
    objective = Objective(spec, compute_of(run, mesh), loss)
    optimizer, schedule = make_optimizer(run.optim, total_steps)
    mode = run.reference.mode if loss.needs_reference else 'none'
    reference = None if mode == 'none' else load_reference(run, weights, mesh)
    with attend(total_steps, report) as alive:
        if mode == 'cached':
            own = weights.base if reference is None else reference
            cache = CachedReference(run, objective, own, mesh, alive)
            batches = _with_reference(batches, cache, total_steps)
            reference = None
    frozen = weights.frozen(reference, in_step=mode == 'in_step')
    abstract = programs_lib.abstract_state(
        weights.trained, optimizer, mesh, loss.nothing_carried()
    )
    layout = batches.train.preference.layout
    example = packing.empty(layout.rows, layout, with_reference=mode == 'cached')
    programs = programs_lib.build(
        objective, optimizer, abstract, example, mesh, frozen=frozen
    )
    return Job(
        run=run,
        spec=spec,
        tokenizer=tokenizer,
        mesh=mesh,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        programs=programs,
        abstract=abstract,
        weights=weights,
        frozen=frozen,
        batches=batches,
        stream_weights={stream.name: stream.weight for stream in streams},
        total_steps=total_steps,
        report=report,
    )


def _with_reference(batches: Batches, cache: CachedReference, total_steps: int) -> Batches:
    """The batches with reference log-probs of all that the run will visit."""
    data, held_out = batches.train.preference, batches.held_out
    cache_file = cache.run.reference.cache_file
    data = cache.attach(data, data.visits.first(total_steps), cache_file)
    held_out = held_out and cache.attach(held_out, held_out.visits.everything())
    train = dataclasses.replace(batches.train, preference=data)
    return dataclasses.replace(batches, train=train, held_out=held_out)


def steps_of(run: RunConfig, examples: int) -> int:
    """Optimiser steps of the run: `steps`, or as many as `epochs` of the data fill.

    Raises:
      ConfigError: fewer examples than a step needs.
    """
    steps = run.steps or int(run.epochs * examples / run.batch.prompts)
    if steps == 0:
        raise ConfigError(
            f'epochs={run.epochs} of {examples} examples fill no step of '
            f'batch.prompts={run.batch.prompts}; lower it or raise epochs'
        )
    if steps > MOST_STEPS:
        raise ConfigError(f'epochs={run.epochs}: {steps} steps; at most {MOST_STEPS}')
    return steps


def automatic_chunk(mesh: Mesh) -> int:
    """`Compute.logprob_chunk` where the configuration leaves it open."""
    return 0 if sharding.batch_devices(mesh) > 1 else transformer.Compute.logprob_chunk


def automatic_block(mesh: Mesh) -> int:
    """`Compute.vocab_block` likewise: a GPU needs large products to be busy."""
    gpu = mesh.devices.flat[0].platform == 'gpu'
    return GPU_VOCAB_BLOCK if gpu else transformer.Compute.vocab_block


def compute_of(run: RunConfig, mesh: Mesh) -> transformer.Compute:
    """How the run's model computes on a mesh."""
    return transformer.Compute(
        dtype=run.model.compute_dtype,
        remat=run.model.remat,
        attention=run.model.attention,
        logprob_chunk=run.model.logprob_chunk or automatic_chunk(mesh),
        vocab_block=run.model.vocab_block or automatic_block(mesh),
        mesh=mesh,
    )


def _check_ratings(datasets: Datasets, loss: Loss) -> None:
    for example in [*datasets.train, *datasets.held_out]:
        if np.isnan(example.ratings).any():
            raise ConfigError(
                f'loss.name={loss.name!r} needs a rating of every response; '
                f'{example.origin} has one without. Use rated data (data.layout rated), or '
                'a loss or hyperparameters that do without: python -m epa_jax.losses'
            )


def _check_positions(spec: ModelSpec, run: RunConfig) -> None:
    longest = run.data.max_prompt_tokens + run.data.max_response_tokens
    if longest > spec.max_positions:
        raise ConfigError(
            f'data.max_prompt_tokens + data.max_response_tokens = {longest}, but the model '
            f'was made for {spec.max_positions} positions; lower one of them'
        )
    if run.pretrain.train and run.pretrain.max_tokens > spec.max_positions:
        raise ConfigError(
            f'pretrain.max_tokens={run.pretrain.max_tokens}, but the model was made for '
            f'{spec.max_positions} positions; lower it'
        )
