"""Paths that may be in a bucket: gs:// beside local ones.

What is read as a whole (data, models, tokenizers, templates) is copied to this machine
first and read there, by the same code as local files. Checkpoints go to the bucket through
Orbax; the small files of a run through `mirror`; an export through `upload_folder`.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import fsspec
from etils import epath

log = logging.getLogger(__name__)

SCHEME = 'gs://'
CACHE = 'EPA_CACHE'  # environment variable: the folder of copies

AnyPath: TypeAlias = pathlib.Path | epath.Path


class StorageError(ValueError):
    """A place that cannot be read or written; the message names it and the remedy."""


def is_remote(place: str | AnyPath) -> bool:
    """Whether a place is named by a URL.

    A `pathlib.Path` never is: it writes 'gs://b' as 'gs:/b', which `check_local` refuses.
    """
    return '://' in str(place)


def check(place: str) -> str:
    """The place, if it is a local path or one in a bucket.

    Raises:
      StorageError: another kind of URL, or no object in a bucket.
    """
    if not is_remote(place):
        return place
    if not place.startswith(SCHEME):
        raise StorageError(
            f'{place}: only local paths and {SCHEME} are read and written here'
        )
    bucket, _, name = place.removeprefix(SCHEME).partition('/')
    if not bucket or not name.strip('/'):
        raise StorageError(f'{place}: expected {SCHEME}BUCKET/PATH')
    if any(part in ('', '.', '..') for part in name.rstrip('/').split('/')):
        raise StorageError(f'{place}: empty parts, . and .. are not names in a bucket')
    return place


def local_only(text: str) -> pathlib.Path:
    """A local path, for what does not read or write buckets.

    Raises:
      StorageError: it is a URL.
    """
    if is_remote(text):
        raise StorageError(
            f'{text}: must be a local path here; copy it to this machine first: '
            f'gcloud storage cp --recursive {text} .'
        )
    return pathlib.Path(text)


def argument(text: str) -> pathlib.Path:
    """The same as a type of `argparse`."""
    try:
        return local_only(text)
    except StorageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(place: str | AnyPath) -> AnyPath:
    """The path object of a place, whose methods work there.

    Raises:
      StorageError: as `check` and `filesystem`.
    """
    if not is_remote(place):
        return pathlib.Path(place)
    filesystem()
    return epath.Path(check(str(place)))


def filesystem() -> fsspec.AbstractFileSystem:
    """The buckets. Nothing of them is remembered: other processes write there too.

    Raises:
      StorageError: gcsfs is not installed.
    """
    try:
        return fsspec.filesystem('gs', use_listings_cache=False)
    except ImportError as error:
        raise StorageError(
            f"{SCHEME} needs gcsfs: pip install -c constraints.txt -e '.[gcs]' ({error})"
        ) from error


@contextlib.contextmanager
def explained(place: str | AnyPath) -> Iterator[None]:
    """Within it, what goes wrong with a bucket is a StorageError."""
    import aiohttp  # all only where a bucket is used
    import gcsfs.retry
    import google.auth.exceptions

    kinds = (
        OSError,
        aiohttp.ClientError,
        gcsfs.retry.HttpError,
        google.auth.exceptions.GoogleAuthError,
    )
    try:
        yield
    except kinds as error:
        first = (str(error).splitlines() or [''])[0]
        raise StorageError(
            f'{place}: {type(error).__name__}: {first}; check that it exists and that this '
            'account may use it (gcloud auth application-default login)'
        ) from error


def local(place: str | AnyPath) -> pathlib.Path:
    """The local path, or a local copy, of a file or folder.

    Copies are kept in $EPA_CACHE, by default ~/.cache/epa_jax, and used again while the
    objects are the same; each name holds a digest of their generations.

    Raises:
      StorageError: nothing there, or it cannot be read.
    """
    if not is_remote(place):
        return pathlib.Path(place)
    url = check(str(place)).rstrip('/')
    files = filesystem()
    with explained(url):
        objects = _objects(files, url)
        identity = [(name, info.get('generation'), info['size']) for name, info in objects]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        folder = _cache() / f'{url.removeprefix(SCHEME)}@{digest}'
        target = folder / url.rpartition('/')[2]
        if not target.exists():
            size = sum(info['size'] for _, info in objects) / 1e9
            log.info('copying %s (%.2f GB) to %s', url, size, target)
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix='.partial.', dir=folder.parent) as new:
                _download(files, url, objects, pathlib.Path(new) / 'copy' / target.name)
                with contextlib.suppress(OSError):  # another process was faster
                    os.rename(pathlib.Path(new) / 'copy', folder)
    return target


def _cache() -> pathlib.Path:
    return pathlib.Path(os.environ.get(CACHE) or '~/.cache/epa_jax').expanduser()


def _objects(
    files: fsspec.AbstractFileSystem, url: str
) -> list[tuple[str, Mapping[str, Any]]]:
    """(name below the URL, '' for itself; what is known of it), in order.

    Raises:
      StorageError: none, or a name that would be written outside of the copy.
    """
    base = url.removeprefix(SCHEME)
    found = []
    for name, info in sorted(files.find(base, detail=True).items()):
        if name != base and not name.startswith(f'{base}/'):
            continue
        below = name.removeprefix(base).removeprefix('/')
        if below.endswith('/') or info.get('type') == 'directory':
            continue
        if below and any(part in ('', '.', '..') for part in below.split('/')):
            raise StorageError(f'{SCHEME}{name}: not a name that is copied')
        found.append((below, info))
    if not found:
        raise StorageError(f'{url}: no such file or folder')
    return found


def _download(
    files: fsspec.AbstractFileSystem,
    url: str,
    objects: list[tuple[str, Mapping[str, Any]]],
    target: pathlib.Path,
) -> None:
    for below, info in objects:
        file = target / below if below else target
        source = f'{url}/{below}' if below else url
        file.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(source, str(file))
        if file.stat().st_size != info['size']:
            raise StorageError(f'{source}: changed while it was copied; try again')


def upload(file: pathlib.Path, place: str | AnyPath) -> None:
    """Writes an object: whole, or not at all.

    Raises:
      StorageError: it cannot be written.
    """
    with explained(place):
        filesystem().put_file(str(file), str(place))


def upload_folder(folder: pathlib.Path, place: str | AnyPath, last: str) -> None:
    """Replaces a folder in a bucket by a local one.

    Buckets have no rename, so a reader can meet it half-written. `last` is the file without
    which nothing reads the folder: it goes first and comes last.

    Raises:
      StorageError: it cannot be written.
    """
    url = check(str(place)).rstrip('/')
    files = filesystem()
    with explained(url):
        old = set(files.find(url))
        for name in sorted(old, key=lambda name: not name.endswith(f'/{last}')):
            files.rm_file(name)
        new = [file for file in sorted(folder.rglob('*')) if file.is_file()]
        for file in sorted(new, key=lambda file: file == folder / last):
            files.put_file(str(file), f'{url}/{file.relative_to(folder).as_posix()}')


@contextlib.contextmanager
def new_folder(place: str | AnyPath, last: str) -> Iterator[pathlib.Path]:
    """A local folder that replaces one in a bucket if all goes well."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='epa_jax.'))
    try:
        yield folder
        upload_folder(folder, place, last)
    finally:
        shutil.rmtree(folder)
