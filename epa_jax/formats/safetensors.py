"""Reads safetensors folders as Hugging Face publishes them, and writes such files.

The files are mapped into memory and validated before use: a header that lies about its
size, offsets or dtypes is refused, and shard names cannot leave the folder.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from epa_jax.formats.assemble import StoredTensor
from epa_jax.formats.files import folder_tensors, parse_json
from epa_jax.formats.names import FormatError
from epa_jax.strict_json import shown

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors library

DTYPES: dict[str, Any] = {
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
}


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of a folder, headers checked, values unread.

    Raises:
      FormatError: a file that is missing, cut short or malformed.
    """
    return folder_tensors(folder, SINGLE, INDEX, file_tensors)


def file_tensors(path: Path) -> list[StoredTensor]:
    """All tensors of one file, as `stored_tensors`."""
    try:
        size = path.stat().st_size
        with path.open('rb') as f:
            length = int.from_bytes(f.read(8), 'little')
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise FormatError(
                    f'{path}: the header does not fit the file of {size} bytes; it is cut '
                    'short or not a safetensors file (a Git LFS pointer?)'
                )
            text = f.read(length).decode('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f'{path}: cannot be read: {error}') from None
    header = parse_json(text, str(path))
    header.pop('__metadata__', None)
    start = 8 + length
    _check_offsets(path, header, size - start)
    return [_tensor(path, name, entry, start) for name, entry in header.items()]


def _check_offsets(path: Path, header: dict[str, Any], size: int) -> None:
    """Tensors must fill the data of `size` bytes without gap or overlap."""
    spans = []
    for name, entry in header.items():
        if not _well_formed(entry):
            raise FormatError(
                f'{path}: tensor {name} has the malformed entry {shown(entry)}; expected '
                'dtype, shape and data_offsets'
            )
        spans.append((*entry['data_offsets'], name))
    end = 0
    for first, last, name in sorted(spans):
        if first != end or last < first:
            raise FormatError(
                f'{path}: tensor {name} occupies bytes {first} to {last}; expected it to '
                f'begin at {end}'
            )
        end = last
    if end != size:
        raise FormatError(
            f'{path}: tensors take {end} bytes, the file has {size}; the download may be '
            'incomplete'
        )


def _well_formed(entry: Any) -> bool:
    if not isinstance(entry, dict) or set(entry) != {'dtype', 'shape', 'data_offsets'}:
        return False
    shape, offsets = entry['shape'], entry['data_offsets']
    if not isinstance(entry['dtype'], str):
        return False
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(type(n) is int and n >= 0 for n in shape + offsets)


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> StoredTensor:
    shape = tuple(entry['shape'])
    first, last = entry['data_offsets']
    dtype = DTYPES.get(entry['dtype'])
    if dtype is not None and last - first != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f'{path}: tensor {name} of {entry["dtype"]} {shape} takes {last - first} '
            f'bytes; expected {math.prod(shape) * dtype.itemsize}'
        )

    def read() -> np.ndarray:
        if dtype is None:
            raise FormatError(
                f'{path}: tensor {name} has dtype {entry["dtype"]}; expected one of '
                f'{", ".join(DTYPES)}. Save the model in one of them'
            )
        flat = np.memmap(path, np.uint8, 'r', start + first, (last - first,))
        return flat.view(dtype).reshape(shape)

    return StoredTensor(name, str(path), shape, read)


def write_file(
    path: Path,
    tensors: Sequence[tuple[str, tuple[int, ...]]],
    dtype: np.dtype,
    values: Iterable[np.ndarray],
) -> None:
    """Writes a safetensors file while its tensors are produced, one at a time.

    Args:
      path: of the file.
      tensors: name and shape of each, in order.
      dtype: of all of them, one of `DTYPES`.
      values: the arrays, in the same order.
    """
    code = next(code for code, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
    end = 0
    for name, shape in tensors:
        first, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {'dtype': code, 'shape': shape, 'data_offsets': [first, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    with path.open('wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text)
        for (_, shape), value in zip(tensors, values, strict=True):
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(f'{value.shape} {value.dtype}, not {shape} {dtype}')
            f.write(np.ascontiguousarray(value).view(np.uint8).data)
        f.flush()
        os.fsync(f.fileno())
