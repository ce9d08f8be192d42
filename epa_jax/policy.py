"""A policy to look at: a run folder, a Hugging Face folder or a .gguf file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from epa_jax import sharding
from epa_jax.checkpoints import CheckpointError, Checkpoints
from epa_jax.config import ConfigError
from epa_jax.formats.load import load_model, load_spec
from epa_jax.formats.tokenizer import check_vocabulary, load_tokenizer
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.schema import CheckpointConfig
from epa_jax.types import Params


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
        params = _read_checkpoint(path / 'checkpoints', step, _abstract(spec, dtype, mesh))
    else:
        base = path / 'export' if (path / 'export').is_dir() else path
        spec = load_spec(base)
        where = jax.tree.map(lambda leaf: leaf.sharding, _abstract(spec, dtype, mesh))
        _, params = load_model(base, dtype, where)
    found = load_tokenizer(tokenizer or base)
    check_vocabulary(found, spec)
    compute = Compute(dtype=dtype, constrain=sharding.constrainer(mesh))
    return Policy(spec, params, found, compute, mesh)


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
    """
    path = run / 'config.json'
    try:
        config = json.loads(path.read_text('utf-8'))
        base = Path(config['model.path'])
        return base, Path(config.get('model.tokenizer') or base)
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


def _read_checkpoint(folder: Path, step: int | None, abstract: Any) -> Params:
    """The parameters alone: the optimiser's state is not read."""
    known = saved_steps(folder.parent)
    step = known[-1] if step is None else step
    if step not in known:
        raise CheckpointError(f'{folder}: no checkpoint of step {step}; found {known}')
    item = {'params': abstract}
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            return reader.restore((folder / str(step) / 'state').absolute(), args)['params']
        except Exception as error:  # Orbax and TensorStore raise bare Exception too
            first = (str(error).splitlines() or [''])[0]
            raise CheckpointError(
                f'{folder / str(step)}: cannot be read ({type(error).__name__}: {first})'
            ) from error
