"""A policy to look at: a run folder, a model's or adapter's folder, or a .gguf file."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from epa_jax import sharding, storage
from epa_jax.checkpoints import CheckpointError, Checkpoints
from epa_jax.config import ConfigError, from_flat
from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.tokenizer import check_vocabulary, load_tokenizer
from epa_jax.models import transformer
from epa_jax.models.lora import Lora, abstract_adapters, attach, merge
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.schema import CheckpointConfig
from epa_jax.strict_json import parse, shown
from epa_jax.types import Params
from epa_jax.weights import adapter_shardings, check_base, lora_of


@dataclasses.dataclass(frozen=True)
class Policy:
    """A model on its devices.

    Attributes:
      spec: architecture.
      params: as `transformer.abstract_params` describes them.
      tokenizer: of the model.
      compute: how to compute, on the mesh.
      mesh: the devices.
    """

    spec: ModelSpec
    params: Params
    tokenizer: PreTrainedTokenizerBase
    compute: Compute
    mesh: Mesh


def load_policy(
    path: Path,
    *,
    mesh: Mesh,
    dtype: str = 'float32',
    step: int | None = None,
    tokenizer: Path | None = None,
) -> Policy:
    """Loads a model and its tokenizer onto a mesh.

    Args:
      path: a run folder, of which the export is read, or without one the newest
        checkpoint; or what `formats.load.load_model` reads.
      mesh: the devices.
      dtype: of parameters and products.
      step: of a run folder, the checkpoint of this step.
      tokenizer: a folder or .gguf file; that of the model unless given.

    Raises:
      ConfigError: a step where there are no checkpoints, or a mesh that does not fit.
      FormatError, SpecError: as `load_model`.
      CheckpointError: no such checkpoint, or a damaged one.
    """
    is_run = (path / 'checkpoints').is_dir()
    if step is not None and not is_run:
        raise ConfigError(f'step={step}: {path} is no run folder with checkpoints')
    if is_run and (step is not None or not (path / 'export').is_dir()):
        base, own = base_model(path)
        tokenizer = tokenizer or own
        spec = load_spec(base)
        if saved_lora(path) is None:
            params = _read_checkpoint(path, step, _abstract(spec, dtype, mesh))
        else:
            params = _merged(path, step, dtype, mesh)
    else:
        base = path / 'export' if (path / 'export').is_dir() else path
        spec = load_spec(base)
        where = jax.tree.map(lambda leaf: leaf.sharding, _abstract(spec, dtype, mesh))
        _, params = load_model(base, dtype, where)
    found = load_tokenizer(tokenizer or base)
    check_vocabulary(found, spec)
    compute = Compute(dtype=dtype, mesh=mesh)
    return Policy(spec, params, found, compute, mesh)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A checkpoint of adapters, and what they belong to.

    Attributes:
      spec: architecture.
      base: parameters of the model, in the dtype in which it stood in the run.
      lora: shape and scale of the adapters.
      adapters: as `lora.abstract_adapters` describes them.
    """

    spec: ModelSpec
    base: Params
    lora: Lora
    adapters: Params


def load_adapted(run: Path, step: int | None, mesh: Mesh) -> Adapted:
    """Loads the adapters of a run's checkpoint and the model that they adapt.

    Args:
      run: a run folder.
      step: of the checkpoint; None is the newest.
      mesh: the devices.

    Raises:
      ConfigError: the run trained no adapters.
      CheckpointError: no such checkpoint, a damaged one, or one of another base.
      FormatError, SpecError: as `load_model`.
    """
    lora = saved_lora(run)
    if lora is None:
        raise ConfigError(f'{run}: trained a whole model (lora.rank=0), no adapters')
    path, _ = base_model(run)
    spec = load_spec(path)
    where = adapter_shardings(spec, lora, mesh)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract_adapters(spec, lora),
        where,
    )
    step = _known(run, step)
    adapters = _read_checkpoint(run, step, abstract)
    dtype = _saved_config(run)['model.param_dtype']
    shapes = _abstract(spec, dtype, mesh)
    _, base = load_model(path, dtype, jax.tree.map(lambda leaf: leaf.sharding, shapes))
    folder = run / 'checkpoints' / str(step) / 'config'
    check_base(_restore(folder, ocp.JsonCheckpointHandler()), base, str(folder.parent))
    return Adapted(spec, base, lora, adapters)


def _merged(run: Path, step: int | None, dtype: str, mesh: Mesh) -> Params:
    """A checkpoint's policy as a whole model."""
    found = load_adapted(run, step, mesh)
    base = found.base
    if dtype == 'float32':  # before the sum, which is rounded to the base's dtype
        base = jax.tree.map(lambda leaf: leaf.astype(dtype), base)
    whole = merge(attach(base, found.adapters, found.lora.scale), donate=True)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), whole)


def saved_lora(run: Path) -> Lora | None:
    """The adapters that a run trained, or None.

    Raises:
      ConfigError: no configuration of a run, or one of another version.
    """
    config = _saved_config(run)
    return lora_of(from_flat(config).lora) if config.get('lora.rank') else None


def _abstract(spec: ModelSpec, dtype: str, mesh: Mesh) -> Any:
    """Shapes of the parameters with where they live."""
    shapes = transformer.abstract_params(spec, dtype)
    where = sharding.param_shardings(mesh, shapes, transformer.logical_axes(spec))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        where,
    )


def base_model(run: Path) -> tuple[Path, Path]:
    """The model that a run started from, which has its architecture, and its tokenizer.

    Raises:
      ConfigError: no configuration of a run.
      StorageError: the model is in a bucket that cannot be read.
    """
    config = _saved_config(run)
    base = storage.local(config['model.path'])
    return base, storage.local(config.get('model.tokenizer') or base)


def _saved_config(run: Path) -> dict[str, Any]:
    """A run's configuration by dotted key."""
    path = run / 'config.json'
    try:
        config = parse(path.read_text('utf-8'))
        for value in (config['model.path'], config.get('model.tokenizer', '')):
            if not isinstance(value, str):
                raise TypeError(f'{shown(value)} is no path')
        return dict(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path}: expected the configuration of a run, with model.path '
            f'({type(error).__name__}: {error})'
        ) from error


def saved_steps(run: Path) -> list[int]:
    """Steps of a run folder's checkpoints, in order.

    Raises:
      CheckpointError: there are none.
    """
    folder = run / 'checkpoints'
    checkpoints = Checkpoints(folder, CheckpointConfig(), read_only=True)
    try:
        steps = checkpoints.steps()
    finally:
        checkpoints.close()
    if not steps:
        raise CheckpointError(f'{folder}: no checkpoints')
    return steps


def _known(run: Path, step: int | None) -> int:
    """A step that a run has a checkpoint of, the newest unless given."""
    known = saved_steps(run)
    if step is not None and step not in known:
        folder = run / 'checkpoints'
        raise CheckpointError(f'{folder}: no checkpoint of step {step}; found {known}')
    return known[-1] if step is None else step


def _read_checkpoint(run: Path, step: int | None, abstract: Any) -> Params:
    """The trained parameters alone: the optimiser's state is not read."""
    folder = run / 'checkpoints' / str(_known(run, step)) / 'state'
    item = {'params': abstract}
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    return _restore(folder, ocp.PyTreeCheckpointHandler(), args)['params']


def _restore(folder: Path, handler: Any, *args: Any) -> Any:
    """One item of a checkpoint."""
    with ocp.Checkpointer(handler) as reader:
        try:
            return reader.restore(folder.absolute(), *args)
        except Exception as error:  # Orbax and TensorStore raise bare Exception too
            first = (str(error).splitlines() or [''])[0]
            raise CheckpointError(
                f'{folder.parent}: cannot be read ({type(error).__name__}: {first})'
            ) from error
