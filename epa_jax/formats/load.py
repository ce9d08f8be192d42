"""Loads a model from whichever format its path holds.

A folder with model.safetensors or its shards, a folder with flax_model.msgpack or its
shards, a .gguf file, or a folder with a LoRA adapter, which is merged into its base.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import NamedSharding, PartitionSpec

from epa_jax import storage
from epa_jax.formats import (
    assemble,
    files,
    flax_msgpack,
    gguf_file,
    gguf_spec,
    names,
    peft,
    safetensors,
)
from epa_jax.formats.names import FormatError, Names
from epa_jax.models import lora
from epa_jax.models.hf_config import spec_from_hf
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Format:
    """How to read one format.

    Attributes:
      names: of its tensors.
      spec: reads the architecture.
      tensors: lists the tensors, headers checked.
    """

    names: Names
    spec: Callable[[Path], ModelSpec]
    tensors: Callable[[Path], list[assemble.StoredTensor]]


def _folder_spec(folder: Path) -> ModelSpec:
    path = folder / 'config.json'
    if not path.is_file():
        raise FormatError(
            f'{folder}: config.json is missing; expected a Hugging Face folder'
        )
    return spec_from_hf(files.read_json(path), str(path))


SAFETENSORS = Format(names.HUGGING_FACE, _folder_spec, safetensors.stored_tensors)
FLAX = Format(names.FLAX, _folder_spec, flax_msgpack.stored_tensors)
GGUF = Format(
    names.GGUF,
    lambda path: gguf_spec.read_spec(gguf_file.open_gguf(path)),
    lambda path: gguf_file.open_gguf(path).tensors,
)


def detect(path: str | Path) -> Format:
    """The format at a path.

    Raises:
      FormatError: none that is read here; says what was found instead.
    """
    path = Path(path)
    if path.suffix == '.gguf' and path.is_file():
        return GGUF
    if path.is_dir():
        for file, fmt in (
            (safetensors.SINGLE, SAFETENSORS),
            (safetensors.INDEX, SAFETENSORS),
            (flax_msgpack.SINGLE, FLAX),
            (flax_msgpack.INDEX, FLAX),
        ):
            if (path / file).is_file():
                return fmt
    raise FormatError(f'{path}: {_what_is_there(path)}')


def _what_is_there(path: Path) -> str:
    wanted = (
        'expected a folder with config.json and model.safetensors (or shards, or '
        'flax_model.msgpack), or a .gguf file'
    )
    if not path.exists():
        return f'does not exist; {wanted}'
    if path.is_file():
        return f'is not a .gguf file; {wanted}'
    if any(path.glob('pytorch_model*.bin')):
        return (
            'only pickled PyTorch weights, which are not read because they can run code; '
            'save them again with transformers, save_pretrained(safe_serialization=True)'
        )
    gguf = sorted(p.name for p in path.glob('*.gguf'))
    if gguf:
        return f'a folder; name the .gguf file in it: {", ".join(gguf)}'
    return wanted


def load_spec(path: str | Path) -> ModelSpec:
    """The architecture of the model at a path; weights are not read.

    Raises:
      FormatError, SpecError, StorageError: as `load_model`.
    """
    path = storage.local(path)
    files.check_path(path)
    if peft.is_adapter(path):
        path = peft.open_chain(path)[-1].base
    return detect(path).spec(path)


def load_model(
    path: str | Path, param_dtype: str = 'float32', shardings: Params | None = None
) -> tuple[ModelSpec, Params]:
    """Loads architecture and parameters, one tensor at a time.

    Args:
      path: a Hugging Face folder, a .gguf file or a folder with a LoRA adapter; one in a
        bucket is copied to this machine first.
      param_dtype: dtype of the parameters, whatever the file has.
      shardings: tree of `jax.sharding.Sharding` in the structure of the parameters, or
        None for the default device.

    Returns:
      The architecture, and parameters as `transformer.abstract_params` describes them.

    Raises:
      FormatError: a malformed file, or tensors that are not those of the architecture.
      SpecError: an architecture that is not implemented.
      StorageError: a bucket that cannot be read.
    """
    path = storage.local(path)
    files.check_path(path)
    if peft.is_adapter(path):
        return _load_adapted(path, param_dtype, shardings)
    fmt = detect(path)
    spec = fmt.spec(path)
    tensors = fmt.tensors(path)
    if not tensors:
        raise FormatError(f'{path}: the weights hold no tensor; download them again')
    return spec, assemble.assemble(spec, fmt.names, tensors, param_dtype, shardings)


def _load_adapted(
    folder: Path, param_dtype: str, shardings: Params | None
) -> tuple[ModelSpec, Params]:
    """An adapter's base with the adapter merged into it."""
    chain = peft.open_chain(folder)
    spec, params = load_model(chain[-1].base, param_dtype, shardings)
    where = params['embed'].sharding
    for adapter in reversed(chain):
        adapters = peft.read_adapter(adapter, spec)
        if isinstance(where, NamedSharding):
            adapters = jax.device_put(adapters, NamedSharding(where.mesh, PartitionSpec()))
        attached = lora.attach(params, adapters, adapter.lora.scale)
        params = lora.merge(attached, donate=True)
    return spec, params
