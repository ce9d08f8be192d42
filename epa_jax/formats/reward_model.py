"""Sequence-classification reward models of Hugging Face: a decoder and a score head."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from epa_jax.formats import assemble, files, names, safetensors
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

HEAD = 'score.weight'
SUFFIX = 'ForSequenceClassification'


def is_reward_model(path: Path) -> bool:
    """Whether a folder holds a model for sequence classification, of whatever kind."""
    file = path / 'config.json'
    found = files.read_json(file).get('architectures') if file.is_file() else None
    return isinstance(found, list) and any(str(name).endswith(SUFFIX) for name in found)


def load_reward_spec(path: str | Path) -> ModelSpec:
    """Architecture of the decoder of a reward model; it has no output head of its own.

    Raises:
      FormatError: no reward model there.
      SpecError: an architecture that is not implemented.
    """
    file = Path(path) / 'config.json'
    if not file.is_file():
        raise FormatError(f'{path}: config.json is missing; expected a reward model')
    config = files.read_json(file)
    found = config.pop('architectures', None)
    wanted = [f'{name}{SUFFIX}' for name in ('Llama', 'Mistral')]
    if not isinstance(found, list) or len(found) != 1 or found[0] not in wanted:
        raise FormatError(
            f'{file}: architectures={found}: expected a reward model, one of '
            f'{", ".join(wanted)}'
        )
    return dataclasses.replace(spec_from_hf(config, str(file)), tie_embeddings=True)


def load_reward_model(
    path: str | Path, dtype: str = 'float32', shardings: Params | None = None
) -> tuple[ModelSpec, Params, np.ndarray]:
    """Loads a decoder and its score head.

    Args:
      path: a Hugging Face folder with safetensors, single or sharded.
      dtype: of the decoder's parameters.
      shardings: as for `load.load_model`.

    Returns:
      Architecture, parameters, and the score head, float32 [D].

    Raises:
      FormatError: a malformed file, tensors that do not fit, or more labels than one.
      SpecError: as `load_reward_spec`.
    """
    spec = load_reward_spec(path)
    tensors = safetensors.stored_tensors(Path(path))
    heads = [tensor for tensor in tensors if tensor.name == HEAD]
    rest = [tensor for tensor in tensors if tensor.name != HEAD]
    if len(heads) != 1 or heads[0].shape != (1, spec.d_model):
        found = [head.shape for head in heads] or 'none'
        raise FormatError(
            f'{path}: tensor {HEAD}: found {found}, expected one of shape '
            f'{(1, spec.d_model)}; a reward model has one label'
        )
    score = np.asarray(jax.device_get(heads[0].read()), np.float32)[0]
    params = assemble.assemble(spec, names.HUGGING_FACE, rest, dtype, shardings)
    return spec, params, score
