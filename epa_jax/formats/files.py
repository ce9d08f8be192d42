"""What the folder formats share: strict JSON, and weights in one file or in shards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from epa_jax.formats.assemble import StoredTensor
from epa_jax.formats.names import FormatError
from epa_jax.strict_json import JsonError, parse, shown

MAX_JSON = 1 << 28  # bytes; a tokenizer.json takes up to about 2**25


def folder_tensors(
    folder: Path, single: str, index: str, read: Callable[[Path], list[StoredTensor]]
) -> list[StoredTensor]:
    """All tensors of a folder with one file of weights, or an index and its shards.

    Args:
      folder: the folder.
      single: name of the only file of weights.
      index: name of the index.
      read: lists the tensors of a file.

    Raises:
      FormatError: both are there, an index that is malformed, or a tensor that is not in
        the shard that the index says.
    """
    if not (folder / index).is_file():
        return read(folder / single)
    if (folder / single).is_file():
        raise FormatError(
            f'{folder}: has both {single} and {index}; remove the one that is outdated'
        )
    shards = _read_index(folder / index)
    out = []
    for file in sorted(set(shards.values())):
        out += read(folder / file)
    for tensor in out:
        if tensor.name not in shards or shards[tensor.name] != Path(tensor.origin).name:
            raise FormatError(
                f'{tensor.origin}: tensor {tensor.name} is not there according to {index}; '
                'download the folder again'
            )
    return out


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard file, refusing names that leave the folder."""
    index = read_json(path)
    shards = index.get('weight_map')
    if not isinstance(shards, dict) or not shards:
        raise FormatError(f'{path}: weight_map is missing; expected tensor -> file')
    for name, file in shards.items():
        if not _is_name(file):
            raise FormatError(
                f'{path}: tensor {name} is in {shown(file)}; expected a file name in the '
                'folder'
            )
    return shards


def _is_name(file: Any) -> bool:
    """Whether it names a file of the same folder, on any system."""
    if not isinstance(file, str) or file in ('', '.', '..') or len(file) > 255:
        return False
    return not any(mark in file for mark in ('/', '\\', '\0', ':'))


def check_path(path: Path) -> None:
    """Refuses a path that the system will not even look for.

    Raises:
      FormatError: such as a name that is far too long.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f'{shown(str(path))}: cannot be looked for: {reason}') from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object without repeated keys.

    Raises:
      FormatError: unreadable, not JSON, or not an object.
    """
    try:
        size = path.stat().st_size
        if not path.is_file() or size > MAX_JSON:
            raise FormatError(f'{path}: expected a file of at most {MAX_JSON} bytes')
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f'{path}: cannot be read: {error}') from None
    return parse_json(text, str(path))


def parse_json(text: str, origin: str) -> dict[str, Any]:
    """As `read_json`, from text."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise FormatError(f'{origin}: {twice} is there twice; expected once')
        return out

    try:
        value = parse(text, unique)
    except JsonError as error:
        raise FormatError(f'{origin}: {error}') from None
    if not isinstance(value, dict):
        raise FormatError(f'{origin}: expected a JSON object')
    return value
