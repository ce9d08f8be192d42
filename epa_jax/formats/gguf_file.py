"""Reads GGUF files (llama.cpp), versions 2 and 3, little-endian.

The header is parsed here and not by `gguf.GGUFReader`, which trusts the lengths that the
file states; only dequantisation is the gguf package's.
"""

import dataclasses
import math
import struct
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from epa_jax.formats.assemble import StoredTensor
from epa_jax.formats.names import FormatError

MAX_HEADER = 1 << 28  # bytes; a vocabulary of 256k tokens with merges takes about 2**24
_SCALARS = 'BbHhIif?'  # struct codes of value types 0 to 7
_STRING, _ARRAY = 8, 9
_LONG_SCALARS = {10: 'Q', 11: 'q', 12: 'd'}
_FLOATS: dict[gguf.GGMLQuantizationType, Any] = {
    gguf.GGMLQuantizationType.F32: np.dtype('<f4'),
    gguf.GGMLQuantizationType.F16: np.dtype('<f2'),
    gguf.GGMLQuantizationType.BF16: np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A file with its header read.

    Attributes:
      path: of the file.
      metadata: key -> value; arrays are lists.
      tensors: in the file's order, values unread.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: list[StoredTensor]


class _Cursor:
    """Takes values off a buffer, never past its end."""

    def __init__(self, path: Path, data: bytes):
        self.path, self._data, self.offset = path, data, 0

    def error(self, message: str) -> FormatError:
        return FormatError(f'{self.path}: {message} (near byte {self.offset})')

    def raw(self, size: int) -> bytes:
        if size > len(self._data) - self.offset:
            raise self.error(
                f'the header wants {size} bytes more than there are; the file is cut short '
                'or damaged, download it again'
            )
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def scalar(self, code: str) -> Any:
        return struct.unpack('<' + code, self.raw(struct.calcsize('<' + code)))[0]

    def string(self) -> str:
        text = self.raw(self.scalar('Q'))
        try:
            return text.decode('utf-8')
        except UnicodeDecodeError:
            raise self.error('a string is not UTF-8') from None

    def value(self) -> Any:
        kind = self.scalar('I')
        if kind != _ARRAY:
            return self._one(kind)
        kind, count = self.scalar('I'), self.scalar('Q')
        code = self._code(kind)
        if code is not None:
            size = struct.calcsize('<' + code)
            return [v for (v,) in struct.iter_unpack('<' + code, self.raw(size * count))]
        if kind != _STRING:
            raise self.error(f'an array of value type {kind} is not supported')
        if count > len(self._data) // 8:  # a string takes at least 8 bytes
            raise self.error(f'an array of {count} strings does not fit the file')
        return [self.string() for _ in range(count)]

    def _one(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        code = self._code(kind)
        if code is None:
            raise self.error(f'unknown value type {kind}; expected 0 to 12')
        return self.scalar(code)

    def _code(self, kind: int) -> str | None:
        if kind < len(_SCALARS):
            return _SCALARS[kind]
        return _LONG_SCALARS.get(kind)


def open_gguf(path: Path) -> GgufFile:
    """Reads and checks the header.

    Raises:
      FormatError: not a GGUF file of a known version, cut short, or with tensors that lie
        outside the file, overlap, or have a type that is not known.
    """
    try:
        size = path.stat().st_size
        with path.open('rb') as f:
            cursor = _Cursor(path, f.read(min(size, MAX_HEADER)))
    except OSError as error:
        raise FormatError(f'{path}: cannot be read: {error}') from None
    if cursor.raw(4) != b'GGUF':
        raise FormatError(f'{path}: does not begin with GGUF; expected a GGUF file')
    version = cursor.scalar('I')
    if version not in (2, 3):
        raise FormatError(
            f'{path}: GGUF version {version}; expected 2 or 3, little-endian. Convert the '
            'model again with a current llama.cpp'
        )
    n_tensors, n_metadata = cursor.scalar('Q'), cursor.scalar('Q')
    metadata: dict[str, Any] = {}
    for _ in range(n_metadata):
        key = cursor.string()
        if key in metadata:
            raise cursor.error(f'metadata {key} is there twice')
        metadata[key] = cursor.value()
    infos = [_Info.read(cursor) for _ in range(n_tensors)]
    alignment = metadata.get('general.alignment', gguf.GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise FormatError(f'{path}: general.alignment={alignment!r}: not a power of two')
    start = -(-cursor.offset // alignment) * alignment
    _check_extents(path, infos, size - start, alignment)
    return GgufFile(path, metadata, [_tensor(path, info, start) for info in infos])


@dataclasses.dataclass(frozen=True)
class _Info:
    """One tensor of the header; shape in numpy's order, offset from the data's start."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    size: int

    @classmethod
    def read(cls, cursor: _Cursor) -> '_Info':
        name = cursor.string()
        n_axes = cursor.scalar('I')
        if n_axes > 4:
            raise cursor.error(f'tensor {name} has {n_axes} axes; expected at most 4')
        shape = tuple(cursor.scalar('Q') for _ in range(n_axes))[::-1]
        code, offset = cursor.scalar('I'), cursor.scalar('Q')
        try:
            kind = gguf.GGMLQuantizationType(code)
        except ValueError:
            raise cursor.error(f'tensor {name} has the unknown type {code}') from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if not shape or shape[-1] % block:
            raise cursor.error(
                f'tensor {name} {shape}: rows of {kind.name} come in blocks of {block}'
            )
        return cls(name, shape, kind, offset, math.prod(shape) // block * block_bytes)


def _check_extents(path: Path, infos: list[_Info], size: int, alignment: int) -> None:
    end = 0
    for info in sorted(infos, key=lambda i: i.offset):
        if info.offset % alignment or info.offset < end or info.offset + info.size > size:
            raise FormatError(
                f'{path}: tensor {info.name} is said to occupy bytes {info.offset} to '
                f'{info.offset + info.size} of {size}, after {end}; the file is cut short '
                'or damaged, download it again'
            )
        end = info.offset + info.size


def _tensor(path: Path, info: _Info, start: int) -> StoredTensor:
    def read() -> np.ndarray:
        flat = np.memmap(path, np.uint8, 'r', start + info.offset, (info.size,))
        if info.kind in _FLOATS:
            return flat.view(_FLOATS[info.kind]).reshape(info.shape)
        try:
            rows = flat.reshape(*info.shape[:-1], -1)
            return gguf.quants.dequantize(rows, info.kind)
        except NotImplementedError:
            raise FormatError(
                f'{path}: tensor {info.name} has type {info.kind.name}, which the gguf '
                'package cannot dequantise; use a file of another quantisation'
            ) from None

    return StoredTensor(info.name, str(path), info.shape, read)
