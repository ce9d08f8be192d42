"""Reads flax_model.msgpack folders, as FlaxLlama and FlaxMistral of transformers 4.x save.

The file is walked in place, in the few kinds of MessagePack value that Flax writes for a
tree of arrays; anything else is refused. Nothing is decoded before all of it is checked,
and arrays are read where they lie, so that no tensor is in memory twice.
"""

import dataclasses
import math
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from epa_jax.formats.assemble import StoredTensor
from epa_jax.formats.files import folder_tensors
from epa_jax.formats.names import FormatError

SINGLE = 'flax_model.msgpack'
INDEX = 'flax_model.msgpack.index.json'
MAX_DEPTH = 32

_NDARRAY = 1  # Flax's extension type
_CHUNKED = '__msgpack_chunked_array__'
_DTYPES: dict[str, Any] = {
    'float32': np.dtype('<f4'),
    'float16': np.dtype('<f2'),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
}

# first byte of a value -> bytes of the length that follows it
_MAP, _STR, _BIN, _EXT, _ARRAY, _UINT = (
    'map',
    'string',
    'bytes',
    'extension',
    'array',
    'int',
)
_LENGTH_BYTES = {
    0xDE: (_MAP, 2),
    0xDF: (_MAP, 4),
    0xD9: (_STR, 1),
    0xDA: (_STR, 2),
    0xDB: (_STR, 4),
    0xC4: (_BIN, 1),
    0xC5: (_BIN, 2),
    0xC6: (_BIN, 4),
    0xC7: (_EXT, 1),
    0xC8: (_EXT, 2),
    0xC9: (_EXT, 4),
    0xDC: (_ARRAY, 2),
    0xCC: (_UINT, 1),
    0xCD: (_UINT, 2),
    0xCE: (_UINT, 4),
    0xCF: (_UINT, 8),
}
# first byte -> kind and lowest byte of the range whose rest is the length
_IN_FIRST_BYTE = ((0x00, 0x7F, _UINT), (0x80, 0x8F, _MAP), (0x90, 0x9F, _ARRAY))
_FIXED_STR = (0xA0, 0xBF)
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_BOOL = {0xC2: False, 0xC3: True}


@dataclasses.dataclass(frozen=True)
class _Extent:
    """An array in the file: dtype, shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Chunked:
    """An array too large for one MessagePack value, in flat pieces."""

    shape: tuple[int, ...]
    pieces: tuple[_Extent, ...]


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of a folder, structure checked, values unread.

    Raises:
      FormatError: a file that is missing, cut short, or holds more than arrays.
    """
    return folder_tensors(folder, SINGLE, INDEX, _file_tensors)


def _file_tensors(path: Path) -> list[StoredTensor]:
    try:
        with (
            path.open('rb') as f,
            mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            tree = _Walker(path, data).document()
    except (OSError, ValueError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f'{path}: cannot be read: {error}') from None
    return _flatten(path, tree, '')


def _flatten(path: Path, tree: dict[str, Any], prefix: str) -> list[StoredTensor]:
    out = []
    for key, node in tree.items():
        name = prefix + key
        if isinstance(node, dict):
            out += _flatten(path, node, name + '/')
        elif isinstance(node, (_Extent, _Chunked)):
            out.append(_tensor(path, name, node))
        else:
            raise FormatError(f'{path}: {name} is {node!r}; expected an array')
    return out


def _tensor(path: Path, name: str, node: _Extent | _Chunked) -> StoredTensor:
    pieces = (node,) if isinstance(node, _Extent) else node.pieces
    dtypes = {piece.dtype for piece in pieces}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise FormatError(
            f'{path}: tensor {name} has dtype {", ".join(sorted(dtypes)) or "none"}; '
            f'expected one of {", ".join(_DTYPES)}'
        )
    dtype = _DTYPES[dtypes.pop()]
    wanted = [math.prod(piece.shape) * dtype.itemsize for piece in pieces]
    stated = math.prod(node.shape) * dtype.itemsize
    if wanted != [piece.size for piece in pieces] or sum(wanted) != stated:
        raise FormatError(
            f'{path}: tensor {name} {node.shape} takes {stated} bytes, but has '
            f'{sum(piece.size for piece in pieces)}'
        )

    def read() -> np.ndarray:
        flat = [np.memmap(path, np.uint8, 'r', p.offset, (p.size,)) for p in pieces]
        whole = flat[0] if len(flat) == 1 else np.concatenate(flat)
        return whole.view(dtype).reshape(node.shape)

    return StoredTensor(name, str(path), node.shape, read)


class _Walker:
    """Reads the structure of one file; arrays are only located."""

    def __init__(self, path: Path, data: mmap.mmap):
        self._path, self._data, self._offset = path, data, 0

    def _error(self, message: str) -> FormatError:
        return FormatError(f'{self._path}: {message} (near byte {self._offset})')

    def _take(self, size: int) -> bytes:
        self._need(size)
        self._offset += size
        return self._data[self._offset - size : self._offset]

    def _need(self, size: int) -> None:
        if size > len(self._data) - self._offset:
            raise self._error(
                'the file ends too early; it is cut short or damaged, download it again'
            )

    def _head(self) -> tuple[str, Any]:
        """Kind of the next value, with its length, value or extension length."""
        first = self._take(1)[0]
        for low, high, kind in _IN_FIRST_BYTE:
            if low <= first <= high:
                return kind, first - low
        if _FIXED_STR[0] <= first <= _FIXED_STR[1]:
            return _STR, first - _FIXED_STR[0]
        if first in _LENGTH_BYTES:
            kind, size = _LENGTH_BYTES[first]
            return kind, int.from_bytes(self._take(size), 'big')
        if first in _FIXED_EXT:
            return _EXT, _FIXED_EXT[first]
        if first in _BOOL:
            return 'bool', _BOOL[first]
        raise self._error(f'a value begins with {first:#x}; expected a tree of arrays')

    def _expect(self, kind: str) -> Any:
        found, value = self._head()
        if found != kind:
            raise self._error(f'found {found}, expected {kind}')
        return value

    def _text(self, kind: str = _STR) -> str:
        try:
            return self._take(self._expect(kind)).decode('utf-8')
        except UnicodeDecodeError:
            raise self._error('a name is not UTF-8') from None

    def document(self) -> dict[str, Any]:
        """The whole file: one map."""
        tree = self._map(self._expect(_MAP), 0)
        if self._offset != len(self._data):
            raise self._error('bytes are left after the end; expected none')
        if not isinstance(tree, dict):
            raise self._error('the file is a single array; expected a tree of them')
        return tree

    def _map(self, count: int, depth: int) -> dict[str, Any] | _Chunked:
        if depth > MAX_DEPTH:
            raise self._error(f'maps are nested more than {MAX_DEPTH} deep')
        out: dict[str, Any] = {}
        for _ in range(count):
            key = self._text()
            if key in out or '/' in key:
                raise self._error(f'the name {key!r} is there twice or has a slash')
            out[key] = self._value(depth)
        return self._chunked(out) if _CHUNKED in out else out

    def _value(self, depth: int) -> Any:
        kind, value = self._head()
        if kind == _MAP:
            return self._map(value, depth + 1)
        if kind == _EXT:
            return self._array(value)
        if kind in (_UINT, 'bool'):
            return value
        raise self._error(f'found {kind}, expected array or map')

    def _array(self, length: int) -> _Extent:
        code = self._take(1)[0]
        if code != _NDARRAY:
            raise self._error(f'extension type {code}; expected {_NDARRAY}, an array')
        self._need(length)
        end = self._offset + length
        if self._expect(_ARRAY) != 3:
            raise self._error('an array needs shape, dtype and bytes')
        shape = tuple(self._expect(_UINT) for _ in range(self._expect(_ARRAY)))
        dtype = self._text()
        size = self._expect(_BIN)
        start = self._offset
        if start + size != end:
            raise self._error('the bytes of an array do not fill its place')
        self._offset = end
        return _Extent(dtype, shape, start, size)

    def _chunked(self, node: dict[str, Any]) -> _Chunked:
        shape, chunks = node.get('shape'), node.get('chunks')
        if set(node) != {_CHUNKED, 'shape', 'chunks'} or not (
            isinstance(shape, dict) and isinstance(chunks, dict)
        ):
            raise self._error('a chunked array needs shape and chunks')
        axes = self._sequence(shape, int)
        return _Chunked(axes, self._sequence(chunks, _Extent))

    def _sequence(self, node: dict[str, Any], kind: type) -> tuple[Any, ...]:
        """A tuple, which Flax writes as a map from '0', '1', .."""
        names = [str(i) for i in range(len(node))]
        if set(node) != set(names) or not all(type(v) is kind for v in node.values()):
            raise self._error('a chunked array has malformed shape or chunks')
        return tuple(node[name] for name in names)
