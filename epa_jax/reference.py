"""Reference log-probs computed once, kept in a file that is found again by content."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from epa_jax import storage
from epa_jax.types import Params, TokenGroup

FORMAT = '1'  # raise it when the meaning of a cache file changes
LEFT_SECONDS = 3600  # no write of one file takes so long


class StaleCacheError(ValueError):
    """A cache file that was made from something else; the message says from what."""


def fingerprint(params: Params) -> str:
    """Digest of all parameter values, the same on any mesh.

    Each element's bits are mixed with its index and summed modulo 2**32, in integer
    arithmetic, so neither sharding nor the order of a reduction can change it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.sha256()
    for path, leaf in leaves:
        sums = np.asarray(_mixed_sums(leaf))
        name = f'{jax.tree_util.keystr(path)}{leaf.shape}{leaf.dtype}'
        digest.update(name.encode() + sums.tobytes())
    return digest.hexdigest()[:32]


@jax.jit
def _mixed_sums(leaf: jax.Array) -> jax.Array:
    """Two independent 32-bit sums over an array of 2- or 4-byte elements."""
    width = jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    for axis in range(leaf.ndim):
        index = index * jnp.uint32(0x01000193) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, axis
        )
    return jnp.stack([_mix(bits, index, c) for c in (0x9E3779B1, 0x85EBCA77)])


def _mix(bits: jax.Array, index: jax.Array, odd: int) -> jax.Array:
    mixed = (bits ^ (index * jnp.uint32(odd))) * jnp.uint32(0xC2B2AE3D)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x27D4EB2F)
    return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)


def data_digest(groups: Iterable[TokenGroup]) -> str:
    """Digest of the tokens of every prompt and response, in order."""
    digest = hashlib.sha256()
    for group in groups:
        for ids in (group.prompt_ids, *group.response_ids):
            digest.update(len(ids).to_bytes(4, 'little'))
            digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
    return digest.hexdigest()[:32]


def identity(
    params: Params, dtype: str, tail_weight: float, groups: Iterable[TokenGroup]
) -> dict[str, str]:
    """All that cached log-probs depend on."""
    return {
        'format': FORMAT,
        'weights': fingerprint(params),
        'dtype': dtype,
        'tail_weight': str(tail_weight),
        'data': data_digest(groups),
    }


def cache_path(cache_dir: str, made_from: dict[str, str]) -> storage.AnyPath:
    """Where the log-probs of this identity live."""
    text = json.dumps(made_from, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()[:16]
    return storage.path(cache_dir) / f'ref_logps-{name}.safetensors'


def unfinished(path: storage.AnyPath) -> storage.AnyPath:
    """Where what is known of a cache file is kept until all of it is."""
    return path.with_name(f'{path.name}.unfinished')


def save(path: storage.AnyPath, logps: np.ndarray, made_from: dict[str, str]) -> None:
    """Writes a cache file; an interrupted write leaves none."""
    if not isinstance(path, pathlib.Path):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / path.name
            save(file, logps, made_from)
            storage.upload(file, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    # not save_file, whose error for a full disk is none of the operating system's
    partial.write_bytes(safetensors.numpy.save({'ref_logps': logps}, metadata=made_from))
    os.replace(partial, path)
    _remove_leftovers(path)


def _remove_leftovers(path: pathlib.Path) -> None:
    """What killed runs were writing; others that share the folder may be writing too.

    Ages are told by times of the folder's own disk, so no clock of a machine matters.
    """
    now = path.stat().st_mtime
    for file in path.parent.glob('ref_logps-*.partial'):
        with contextlib.suppress(FileNotFoundError):  # just finished, or another was faster
            if now - file.stat().st_mtime > LEFT_SECONDS:
                file.unlink()


def load(
    path: storage.AnyPath, shape: tuple[int, int], made_from: dict[str, str]
) -> np.ndarray:
    """Reads a cache file.

    Args:
      path: the file.
      shape: [number of keys, K] expected.
      made_from: identity expected.

    Raises:
      StaleCacheError: it cannot be read, or was made from anything else.
    """
    remedy = 'delete it, or leave reference.cache_file empty to compute anew'
    try:
        with safetensors.safe_open(storage.local(path), framework='numpy') as file:
            found = file.metadata() or {}
            logps = file.get_tensor('ref_logps')
    except (OSError, safetensors.SafetensorError) as error:
        raise StaleCacheError(
            f'{path}: not a readable cache ({error}); {remedy}'
        ) from error
    wrong = sorted(k for k, v in made_from.items() if found.get(k) != v)
    if wrong:
        raise StaleCacheError(
            f'{path}: made from other {", ".join(wrong)} than this run; {remedy}'
        )
    if logps.shape != shape or logps.dtype != np.float32:
        raise StaleCacheError(
            f'{path}: holds {logps.dtype} {logps.shape}, expected float32 {shape}; {remedy}'
        )
    return logps


def describe(path: storage.AnyPath, reused: bool) -> None:
    """Logs whether log-probs were computed or found."""
    verb = 'reused' if reused else 'computed and saved'
    logging.getLogger(__name__).info('reference log-probs %s: %s', verb, path)
