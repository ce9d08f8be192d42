"""What every test relies on: a CPU with 8 devices, no network, modest property tests."""

import os
from pathlib import Path

# Before anything imports jax: its back ends are chosen once per process.
os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of a test's time is compiling: the last two flags make that a third shorter.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
).strip()
os.environ['HF_HUB_OFFLINE'] = '1'
# else gcsfs asks Google's servers, before the emulator of tests/gcs.py, what a bucket is
os.environ['GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT'] = 'false'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

import hypothesis
import jax
import pytest

from tests.gcs import bucket, object_store  # noqa: F401, fixtures

hypothesis.settings.register_profile(
    'modest',
    deadline=None,
    max_examples=25,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('modest')

REPO = Path(__file__).resolve().parent.parent
# files of minutes, begun first so that no worker is left alone with one at the end
SLOW = (
    'papers/',
    'theory/',
    'quickstart_test',
    'notebooks_test',
    'train',
    'every_',
    'stories',
    'world/',
)


# whole studies, every loss and every way to train: once, by make exhaustive
STUDIES = (
    'tests/papers/',
    'tests/theory/',
    'tests/world/',
    'tests/every_loss_test',
    'tests/train_lora_test',
    'tests/train_losses_test',
    'tests/train_streams_test',
)


@pytest.hookimpl(tryfirst=True)  # before markers select
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks studies as exhaustive; puts slow files first, in the order within a file."""
    for item in items:
        if item.nodeid.startswith(STUDIES) and not item.get_closest_marker('endurance'):
            item.add_marker(pytest.mark.exhaustive)
    items.sort(key=lambda item: not any(part in item.nodeid for part in SLOW))


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The checkout that the tests run in."""
    return REPO


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Optional real data beside the checkout; tests that need it are skipped without."""
    folder = REPO.parent / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('needs ../shared/data')
    return folder


@pytest.fixture(scope='session')
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as `make smollm2` fetches it; skipped without."""
    path = REPO / 'models' / 'SmolLM2-135M-Instruct.gguf'
    if not path.is_file():
        pytest.skip('needs models/SmolLM2-135M-Instruct.gguf: make smollm2')
    return path


@pytest.fixture(scope='module')
def float64():
    """Theory is checked in float64; the package itself computes in float32."""
    with jax.enable_x64(True):
        yield
