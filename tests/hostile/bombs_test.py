"""Files far larger than they look are refused in bounded memory and time."""

import json
import os
import subprocess
import sys

from tests.hostile.bombs import KINDS

MOST = {'a line': 300, 'a list': 700}  # MiB
USUAL = 150


def test_bombs(repo_root, tmp_path):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'tests.hostile.bombs', str(tmp_path)],
        cwd=repo_root,
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one['kind'] for one in found] == list(KINDS)
    for one in found:
        assert str(tmp_path) in one['error']
        assert one['mib'] < MOST.get(one['kind'], USUAL), one
