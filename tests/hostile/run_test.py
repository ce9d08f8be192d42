"""A run touches nothing outside its folder, and unpickles nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.exhaustive
def test_a_run_writes_in_its_folder_and_unpickles_nothing(repo_root, tmp_path):
    temporary = tmp_path / 'tmp'
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, '-m', 'tests.hostile.run', str(tmp_path)],
        cwd=repo_root,
        env=os.environ | {'TMPDIR': str(temporary), 'PYTHONDONTWRITEBYTECODE': '1'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found['unpickled'] == []
    wrote = [Path(path) for path in found['wrote']]
    names = {path.name for path in wrote}
    assert {'metrics.jsonl', 'process_0.jsonl', 'commit_success.txt'} <= names
    inside = (tmp_path / 'run', temporary, Path(os.devnull))
    assert [p for p in wrote if not any(p.is_relative_to(i) for i in inside)] == []
