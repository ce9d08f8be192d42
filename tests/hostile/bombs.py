"""Opens files that would fill the memory: python -m tests.hostile.bombs FOLDER.

Prints for each kind, a line of JSON, the error and how far the peak of resident memory
rose, in MiB. Each is opened in a fork, whose peak begins where this process stands.
"""

import gzip
import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from epa_jax.data.examples import read_examples
from epa_jax.formats import load, safetensors
from epa_jax.models.hf_config import spec_from_hf
from tests.formats import folders
from tests.hostile.wild import OWN_ERRORS

GIB = 1 << 30


def gz(path: Path, start: bytes, block: bytes, size: int) -> str:
    """A file that decompresses to `size` bytes; a thousandth of it on the disk."""
    with gzip.open(path, 'wb', compresslevel=1) as file:
        file.write(start)
        for _ in range(size // len(block)):
            file.write(block)
    return str(path)


def config(folder: Path, **changes: object) -> Path:
    text = json.dumps(folders.CONFIG | changes)
    (folder / 'config.json').write_text(text)
    header = b'{}'
    (folder / 'model.safetensors').write_bytes(struct.pack('<Q', len(header)) + header)
    return folder


def gguf(folder: Path, count: int) -> Path:
    path = folder / 'm.gguf'
    key = struct.pack('<Q', 1) + b'k' + struct.pack('<IIQ', 9, 0, count)
    path.write_bytes(b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + key)
    return path


def sparse(folder: Path) -> Path:
    """A header of 8 GiB that the file really has, as a hole."""
    path = folder / 'model.safetensors'
    with path.open('wb') as file:
        file.write(struct.pack('<Q', 8 * GIB - 8))
        file.truncate(8 * GIB)
    return path


def sparse_json(folder: Path) -> Path:
    path = folder / 'config.json'
    with path.open('wb') as file:
        file.truncate(8 * GIB)
    return folder


BLOCK = b'a' * (1 << 20)
KINDS: dict[str, Callable[[Path], object]] = {
    'a line': lambda f: read_examples(
        gz(f / 'd.jsonl.gz', b'{"prompt": "', BLOCK, GIB // 4)
    ),
    'a list': lambda f: read_examples(gz(f / 'd.json.gz', b'["', BLOCK, GIB // 2)),
    'blank lines': lambda f: read_examples(
        gz(f / 'd.jsonl.gz', b'', b'\n' * (1 << 20), GIB // 32)
    ),
    'brackets': lambda f: read_examples(gz(f / 'd.jsonl.gz', b'', b'[' * 4096, 1 << 26)),
    'layers': lambda f: load.load_model(config(f, num_hidden_layers=10**9)),
    'a vocabulary': lambda f: load.load_model(config(f, vocab_size=2**31 - 1)),
    'a header': lambda f: safetensors.file_tensors(sparse(f)),
    'a configuration': lambda f: load.load_spec(sparse_json(f)),
    'a count': lambda f: load.load_spec(gguf(f, 2**40)),
}


def main() -> None:
    # what escapes must end in MemoryError and not take the machine with it
    resource.setrlimit(resource.RLIMIT_DATA, (8 * GIB, 8 * GIB))
    spec_from_hf(folders.CONFIG, 'here')
    for number, (kind, read) in enumerate(KINDS.items()):
        folder = Path(sys.argv[1]) / str(number)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            os._exit(explode(kind, read, folder))
        _, status = os.waitpid(child, 0)
        assert status == 0, f'{kind}: status {status}'


def explode(kind: str, read: Callable[[Path], object], folder: Path) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(folder)
    except OWN_ERRORS as error:
        rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found = {'kind': kind, 'error': str(error), 'mib': rise / 1024}
        print(json.dumps(found), flush=True)
        return 0
    return 1


if __name__ == '__main__':
    main()
