"""Puts a model's stored tensors, one by one, into its parameters on the devices."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from epa_jax.formats.names import FormatError, Names, Slot, stored_shape, to_leaf
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import abstract_params
from epa_jax.types import Params


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file whose header is checked and whose values are not yet read.

    Attributes:
      name: in the file.
      origin: the file's name, for messages.
      shape: in the file.
      read: returns the values in a dtype that casts to float32 exactly.
    """

    name: str
    origin: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def assemble(
    spec: ModelSpec,
    names: Names,
    tensors: Sequence[StoredTensor],
    dtype: str = 'float32',
    shardings: Params | None = None,
) -> Params:
    """Loads parameters; the host holds one tensor at a time.

    Args:
      spec: architecture.
      names: the format's names.
      tensors: all tensors of all files.
      dtype: of the parameters.
      shardings: tree of `jax.sharding.Sharding` in the structure of the parameters, or
        None for the default device.

    Returns:
      Parameters as `transformer.abstract_params` describes them.

    Raises:
      FormatError: a tensor that is unknown, unexpected, twice there, missing or of the
        wrong shape; nothing is read before all are checked. Or a separate head in a
        model whose head is tied, unless it equals the embedding.
    """
    abstract = abstract_params(spec, dtype)
    head_name, head_layout = names.outside['head']
    tied_heads = [t for t in tensors if spec.tie_embeddings and t.name == head_name]
    wanted = [
        t for t in tensors if t not in tied_heads and not names.ignored.fullmatch(t.name)
    ]
    _check_unique(tensors)
    params = fill(abstract, names.expected(spec), wanted, shardings)
    for head in tied_heads:
        _check_tied(params['embed'], head, Slot(('embed',), None, head_layout))
    return params


def fill(
    abstract: Params,
    slots: Mapping[str, Slot],
    tensors: Sequence[StoredTensor],
    shardings: Params | None = None,
) -> Params:
    """Loads a tree, each tensor at its slot.

    Args:
      abstract: shapes and dtypes.
      slots: where each tensor goes; all of them, and no others, must be there.
      tensors: of all files.
      shardings: as `assemble`.

    Raises:
      FormatError: as `assemble`.
    """
    _check_unique(tensors)
    _check(abstract, slots, tensors)
    params = _zeros(abstract, shardings)
    for tensor in tensors:
        slot = slots[tensor.name]
        group = params['layers'] if slot.layer is not None else params
        leaf = slot.path[-1]
        value = to_leaf(tensor.read(), slot, _leaf_shape(abstract, slot))
        group[leaf] = _write(group[leaf], value, slot.layer)
    return params


def _check_unique(tensors: Sequence[StoredTensor]) -> None:
    for name, count in Counter(t.name for t in tensors).items():
        if count > 1:
            files = sorted({t.origin for t in tensors if t.name == name})
            raise FormatError(
                f'{", ".join(files)}: tensor {name} is there {count} times; expected once'
            )


def _check(
    abstract: Params, slots: Mapping[str, Slot], tensors: Sequence[StoredTensor]
) -> None:
    """Every slot is filled with its shape, and nothing is left over."""
    for tensor in tensors:
        if tensor.name not in slots:
            raise FormatError(
                f'{tensor.origin}: unexpected tensor {tensor.name} {tensor.shape}; the '
                'configuration describes a model without it. Check that weights and '
                'configuration belong together, and that adapters are merged'
            )
        slot = slots[tensor.name]
        shape = stored_shape(slot, _leaf_shape(abstract, slot))
        if tensor.shape != shape:
            raise FormatError(
                f'{tensor.origin}: tensor {tensor.name} has shape {tensor.shape}; the '
                f'configuration wants {shape}'
            )
    missing = sorted(slots.keys() - {t.name for t in tensors})
    if missing:
        files = sorted({t.origin for t in tensors}) or ['the weights']
        raise FormatError(
            f'{", ".join(files)}: {len(missing)} tensors are missing: '
            f'{", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}; the download '
            'may be incomplete, or the configuration of another model'
        )


def _leaf_shape(abstract: Params, slot: Slot) -> tuple[int, ...]:
    leaf = functools.reduce(lambda tree, key: tree[key], slot.path, abstract)
    return leaf.shape if slot.layer is None else leaf.shape[1:]


def _zeros(abstract: Params, shardings: Params | None) -> Params:
    """Zeros made on the devices, so that the host never holds a whole parameter."""
    make = jax.jit(
        lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), abstract),
        out_shardings=shardings,
    )
    return make()


def _write(target: jax.Array, value: np.ndarray, layer: int | None) -> jax.Array:
    """`target` with `value` at `layer`, in place, or all of it where `layer` is None."""
    sharding = target.sharding
    if layer is None:
        return _own(_place(value, sharding), target.dtype)
    return _write_layer(target, _place(value, _within(sharding)), layer)


def _within(sharding: Sharding) -> Sharding:
    """The sharding of one layer of a stacked parameter."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


def _place(value: np.ndarray, sharding: Sharding) -> jax.Array:
    """Puts a host array that every process has onto the devices."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


@functools.partial(jax.jit, donate_argnums=0)
def _write_layer(target: jax.Array, value: jax.Array, layer: int) -> jax.Array:
    value = value.astype(target.dtype)
    return jax.lax.dynamic_update_index_in_dim(target, value, layer, 0)


@functools.partial(jax.jit, static_argnums=1)
def _own(value: jax.Array, dtype: Any) -> jax.Array:
    """A new buffer: on a CPU the placed array may be the mapped file itself."""
    return jnp.copy(value).astype(dtype)


def _check_tied(embed: jax.Array, head: StoredTensor, slot: Slot) -> None:
    """A head stored beside a tied embedding must be the embedding."""
    same = head.shape == stored_shape(slot, embed.shape)
    if same:
        value = _place(to_leaf(head.read(), slot, embed.shape), embed.sharding)
        same = bool(jnp.array_equal(_own(value, embed.dtype), embed))
    if not same:
        raise FormatError(
            f'{head.origin}: tensor {head.name} differs from the embedding, but the '
            'configuration ties them; set tie_word_embeddings to false, or remove the '
            'tensor'
        )
