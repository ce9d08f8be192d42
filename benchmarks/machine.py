"""What a figure was measured on, and how fast that multiplies matrices."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGES = (
    'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'torch', 'transformers', 'trl', 'accelerate',
    'google-tunix', 'qwix', 'flash_attn',
)  # fmt: skip
MATMUL_SIZE = 2048
MATMUL_SECONDS = 1.0  # of measuring, for each dtype
REPO = Path(__file__).resolve().parent.parent


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, versions, commit; no names of hosts.

    `allocator` is what the environment tells glibc's, which decides a step's time too.
    """
    return {
        'processor': processor(),
        'cores': len(os.sched_getaffinity(0)),
        'memory_gb': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9),
        'system': platform.system(),
        'python': platform.python_version(),
        'packages': versions(),
        'allocator': os.environ.get('GLIBC_TUNABLES', ''),
        'commit': commit(),
    }


def processor() -> str:
    """The processor's model name, or its architecture where the system has none."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text('utf-8').splitlines() if path.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that matter and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this code, '+changes' where files differ; 'unknown' without git."""
    try:
        head = _git('rev-parse', '--short', 'HEAD')
        changed = _git('status', '--porcelain', '--', 'epa_jax', 'benchmarks/*.py')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
    return head + ('+changes' if changed else '')


def _git(*args: str) -> str:
    command = ['git', '-C', str(REPO), *args]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


def median_seconds(run: Callable[[], Any], total: float) -> float:
    """Median time of calls to `run`, which must wait for its result; warmed up once."""
    run()
    taken: list[float] = []
    while sum(taken) < total or len(taken) < 3:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def matmul_rate(
    dtype: str, size: int = MATMUL_SIZE, seconds: float = MATMUL_SECONDS
) -> float:
    """Floating-point operations a second of JAX's square matrix product on one device.

    Args:
      dtype: of both factors and the product.
      size: of their sides.
      seconds: spent measuring.
    """
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (size, size), jnp.float32).astype(dtype)
    product = jax.jit(jnp.matmul)
    return (
        2.0 * size**3 / median_seconds(lambda: product(a, a).block_until_ready(), seconds)
    )


def torch_matmul_rate(
    dtype: str, size: int = MATMUL_SIZE, seconds: float = MATMUL_SECONDS
) -> float:
    """The same of torch, on the CPU."""
    import torch

    a = torch.randn(size, size).to(getattr(torch, dtype))
    return 2.0 * size**3 / median_seconds(lambda: torch.mm(a, a), seconds)
