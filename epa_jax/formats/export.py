"""Writes a model as the Hugging Face folder that transformers and vLLM open."""

import contextlib
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from transformers import PreTrainedTokenizerBase

from epa_jax import storage
from epa_jax.formats import peft, safetensors
from epa_jax.formats.names import (
    HUGGING_FACE,
    FormatError,
    Slot,
    from_leaf,
    stored_shape,
)
from epa_jax.formats.tokenizer import save_tokenizer
from epa_jax.models.hf_config import spec_to_hf
from epa_jax.models.lora import Lora
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import abstract_params
from epa_jax.types import Params

SHARD_BYTES = 5_000_000_000
DTYPES = {'float32': 'F32', 'float16': 'F16', 'bfloat16': 'BF16'}

_Tensor = tuple[str, Slot, tuple[int, ...]]  # name, place, shape in the file


def export_model(
    out_dir: str | storage.AnyPath,
    spec: ModelSpec,
    params: Params,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: str = 'bfloat16',
    model_card: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> storage.AnyPath:
    """Writes config, weights, tokenizer with chat template, and generation defaults.

    The folder appears under its name only when it is complete; in a bucket its config.json
    does (see `storage.upload_folder`). Parameters are gathered one tensor at a time; with
    several processes all must call this, the first writes.

    Args:
      out_dir: folder to make.
      spec: architecture.
      params: parameters of it, possibly sharded.
      tokenizer: written beside the weights, and the source of the token ids in the
        config; or None.
      dtype: of the weights: 'float32', 'float16' or 'bfloat16'.
      model_card: text of README.md, or None for no such file.
      overwrite: replace a folder of that name.
      shard_bytes: the weights are split into files of at most this size, or of one
        tensor.

    Returns:
      `out_dir`.

    Raises:
      FormatError: the folder exists, or parameters that are not those of `spec`.
      SpecError: an architecture that Hugging Face's classes cannot express.
    """
    out_dir = storage.path(out_dir)
    if dtype not in DTYPES:
        raise FormatError(f'dtype={dtype!r}: expected one of {", ".join(DTYPES)}')
    ids = _token_ids(tokenizer)
    config = spec_to_hf(spec, dtype, **ids)
    shards = _plan(spec, params, safetensors.DTYPES[DTYPES[dtype]].itemsize, shard_bytes)
    if not overwrite and _exists(out_dir):
        raise FormatError(f'{out_dir}: exists; remove it or choose another folder')
    if jax.process_index() == 0:
        with _folder(out_dir, 'config.json') as partial:
            _write_weights(partial, params, shards, dtype)
            _write_json(partial / 'config.json', config)
            _write_json(partial / 'generation_config.json', _without_none(ids))
            _write_extras(partial, tokenizer, model_card)
    else:
        for _ in _values(params, [t for shard in shards for t in shard], dtype):
            pass  # takes part in gathering
    multihost_utils.sync_global_devices('export')
    return out_dir


def export_adapter(
    out_dir: str | storage.AnyPath,
    spec: ModelSpec,
    adapters: Params,
    lora: Lora,
    base: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model_card: str | None = None,
    overwrite: bool = False,
) -> storage.AnyPath:
    """Writes adapters as PEFT does, in float32, the same way as `export_model`.

    Args:
      out_dir: folder to make.
      spec: architecture of the base.
      adapters: as `lora.abstract_adapters` describes them, possibly sharded.
      lora: their shape and scale.
      base: path of the model they belong to; written as an absolute one.
      tokenizer: written beside them, or None.
      model_card: text of README.md, or None for no such file.
      overwrite: replace a folder of that name.

    Raises:
      FormatError: the folder exists.
    """
    out_dir = storage.path(out_dir)
    if not overwrite and _exists(out_dir):
        raise FormatError(f'{out_dir}: exists; remove it or choose another folder')
    shapes = {name: leaf.shape[1:] for name, leaf in adapters['layers'].items()}
    tensors = [
        (name, slot, stored_shape(slot, shapes[slot.path[-1]]))
        for name, slot in peft.slots(spec, lora).items()
    ]
    values = _values(adapters, tensors, 'float32')
    if jax.process_index() == 0:
        with _folder(out_dir, peft.CONFIG) as partial:
            named = [(name, shape) for name, _, shape in tensors]
            file = partial / peft.WEIGHTS
            safetensors.write_file(file, named, safetensors.DTYPES['F32'], values)
            base = base if storage.is_remote(base) else os.path.abspath(base)
            _write_json(partial / peft.CONFIG, peft.config_of(lora, base))
            _write_extras(partial, tokenizer, model_card)
    else:
        for _ in values:
            pass  # takes part in gathering
    multihost_utils.sync_global_devices('export')
    return out_dir


def _write_extras(
    folder: Path, tokenizer: PreTrainedTokenizerBase | None, model_card: str | None
) -> None:
    if tokenizer is not None:
        save_tokenizer(tokenizer, folder)
    if model_card is not None:
        (folder / 'README.md').write_text(model_card, encoding='utf-8')


def _exists(path: storage.AnyPath) -> bool:
    """What the first process sees, so that all processes raise or none."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(path.exists())))


def _token_ids(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, int | None]:
    if tokenizer is None:
        return {'bos': None, 'eos': None, 'pad': None}
    return {
        'bos': tokenizer.bos_token_id,
        'eos': tokenizer.eos_token_id,
        'pad': tokenizer.pad_token_id,
    }


def _without_none(ids: dict[str, int | None]) -> dict[str, Any]:
    return {f'{name}_token_id': i for name, i in ids.items() if i is not None}


def _plan(
    spec: ModelSpec, params: Params, itemsize: int, shard_bytes: int
) -> list[list[_Tensor]]:
    """The tensors of each file, in the order of the model."""
    abstract = abstract_params(spec, 'float32')
    wanted = jax.tree.map(lambda p: p.shape, abstract)
    found = jax.tree.map(lambda p: p.shape, params)
    if wanted != found:
        raise FormatError(f'parameters of shapes {found}; the spec describes {wanted}')
    shards: list[list[_Tensor]] = [[]]
    room = shard_bytes
    for name, slot in HUGGING_FACE.expected(spec).items():
        leaf = functools.reduce(lambda tree, key: tree[key], slot.path, abstract)
        shape = stored_shape(slot, leaf.shape if slot.layer is None else leaf.shape[1:])
        size = int(np.prod(shape)) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, slot, shape))
        room -= size
    return shards


def _values(params: Params, tensors: list[_Tensor], dtype: str) -> Iterator[np.ndarray]:
    for _, slot, _ in tensors:
        leaf = functools.reduce(lambda tree, key: tree[key], slot.path, params)
        yield from_leaf(_gather(leaf, slot.layer, dtype), slot)


def _gather(leaf: jax.Array, layer: int | None, dtype: str) -> np.ndarray:
    """One layer's values on the host, whatever the sharding."""
    everywhere = None
    if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    if layer is None:
        return np.asarray(_whole(everywhere, dtype)(leaf))
    return np.asarray(_one_layer(everywhere, dtype)(leaf, layer))


@functools.cache
def _whole(sharding: NamedSharding | None, dtype: str) -> Any:
    return jax.jit(lambda leaf: leaf.astype(dtype), out_shardings=sharding)


@functools.cache
def _one_layer(sharding: NamedSharding | None, dtype: str) -> Any:
    return jax.jit(lambda leaf, i: leaf[i].astype(dtype), out_shardings=sharding)


def _write_weights(
    folder: Path, params: Params, shards: list[list[_Tensor]], dtype: str
) -> None:
    stored = safetensors.DTYPES[DTYPES[dtype]]
    weight_map: dict[str, str] = {}
    total = 0
    for i, shard in enumerate(shards, 1):
        file = f'model-{i:05}-of-{len(shards):05}.safetensors'
        if len(shards) == 1:
            file = safetensors.SINGLE
        tensors = [(name, shape) for name, _, shape in shard]
        values = _values(params, shard, dtype)
        safetensors.write_file(folder / file, tensors, stored, values)
        weight_map |= {name: file for name, _ in tensors}
        total += sum(int(np.prod(shape)) * stored.itemsize for _, shape in tensors)
    if len(shards) > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
        _write_json(folder / safetensors.INDEX, index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


@contextlib.contextmanager
def _folder(out_dir: storage.AnyPath, last: str) -> Iterator[Path]:
    """A new folder that takes the name of `out_dir` if all goes well."""
    if not isinstance(out_dir, Path):
        with storage.new_folder(out_dir, last) as partial:
            yield partial
        return
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{out_dir.name}.', dir=out_dir.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's folders are private
        _replace(partial, out_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, out_dir: Path) -> None:
    """Gives the complete folder its name; an old one is out of the way only for that."""
    if not out_dir.exists():
        os.rename(partial, out_dir)
        return
    old = Path(tempfile.mkdtemp(prefix=f'.{out_dir.name}.old.', dir=out_dir.parent))
    os.rename(out_dir, old / out_dir.name)
    os.rename(partial, out_dir)
    shutil.rmtree(old)
