"""Files far larger than they look are refused in bounded memory and time."""

import json
import os
import resource
import subprocess
import sys

from tests.hostile.bombs import GIB, KINDS

MOST = {'a line': 300, 'a list': 700}  # MiB
USUAL = 150


def limited():
    """What escapes must end in MemoryError and not take the machine with it."""
    resource.setrlimit(resource.RLIMIT_DATA, (8 * GIB, 8 * GIB))


def test_bombs(repo_root, tmp_path):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'tests.hostile.bombs', str(tmp_path)],
        cwd=repo_root,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        preexec_fn=limited,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one['kind'] for one in found] == list(KINDS)
    for one in found:
        assert str(tmp_path) in one['error']
        assert one['mib'] < MOST.get(one['kind'], USUAL), one
