"""`python -m epa_jax.train` on a small run, as real processes."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests import small_run, tiny

REPO = Path(__file__).resolve().parents[2]
TIMEOUT = 300  # seconds, on a busy machine
SPEC = dataclasses.replace(
    tiny.SPEC, n_layers=1, d_model=8, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8
)
CONFIG = """
import pathlib
from tests import small_run

def get_config():
    return small_run.settings(pathlib.Path({folder!r}))
"""


def write(folder):
    """A model, data and the file that --config names."""
    small_run.write(folder, spec=SPEC)
    (folder / 'config.py').write_text(CONFIG.format(folder=str(folder)))


def environment(folder, devices=2, **more):
    """Of a process with so many devices, which keeps what it compiles in the folder."""
    count = f'--xla_force_host_platform_device_count={devices}'
    others = [f for f in os.environ['XLA_FLAGS'].split() if 'device_count' not in f]
    own = {
        'XLA_FLAGS': ' '.join([*others, count]),
        'PYTHONWARNINGS': 'default',
        'PYTHONPATH': str(REPO),
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    return os.environ | own | more


def start(folder, *arguments, devices=2, **more):
    """The running command; `arguments` are keys as 'steps=3', or flags."""
    flags = [a if a.startswith('--') else f'--config.{a}' for a in arguments]
    return subprocess.Popen(
        [sys.executable, '-m', 'epa_jax.train', f'--config={folder}/config.py', *flags],
        cwd=REPO,
        env=environment(folder, devices, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_workers(module, *arguments, count, **of_rank):
    """Runs `count` processes of a module to their end: ARGUMENTS RANK COUNT PORT.

    Args:
      module: whose main connects by the last three arguments.
      arguments: before those.
      count: processes; each has the device that a CPU is.
      of_rank: environment variables, with '{rank}' for the number of the process.
    """
    flags = [f for f in os.environ['XLA_FLAGS'].split() if 'device_count' not in f]
    own = {'XLA_FLAGS': ' '.join(flags), 'PYTHONWARNINGS': 'default'}
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', module, *arguments, str(rank), str(count), str(port)],
            cwd=REPO,
            env=os.environ | own | {k: v.format(rank=rank) for k, v in of_rank.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=2 * TIMEOUT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0] * count, '\n'.join(outputs)


def free_port():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        return probe.getsockname()[1]


def start_pod(folder, *arguments, count=2, devices=4):
    """`count` processes of one run, with so many devices each."""
    port = free_port()
    return [
        start(
            folder,
            '--distributed',
            *arguments,
            devices=devices,
            JAX_COORDINATOR_ADDRESS=f'localhost:{port}',
            JAX_NUM_PROCESSES=str(count),
            JAX_PROCESS_ID=str(rank),
            JAX_CPU_COLLECTIVES_IMPLEMENTATION='gloo',
        )
        for rank in range(count)
    ]


def finish(process, timeout=TIMEOUT):
    """(exit code, output) of a process that ends by itself."""
    try:
        output = process.communicate(timeout=timeout)[0]
    finally:
        process.kill()
    return process.returncode, output


def wait_until(condition, process, timeout=TIMEOUT):
    """Waits for a condition while the process runs."""
    end = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            raise AssertionError(
                f'ended with {process.returncode}:\n{process.stdout.read()}'
            )
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.01)
