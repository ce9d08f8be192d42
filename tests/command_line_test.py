"""Every way to name a configuration wrongly ends in one message."""

import subprocess
import sys

import pytest

from epa_jax.command_line import check_flags
from epa_jax.config import ConfigError

CONFIG = 'experiments/stories260k_epa.py'


@pytest.mark.parametrize(
    ('flag', 'message'),
    [
        ('--config.optim.learning_rate=1', r'optim\.learning_rate: no such key'),
        ('--config.lr=1e-6', r'--config\.lr: no such key; did you mean optim\.lr\?'),
        ('--config.optim=1', r'a group of keys'),
        ('--config.steps=1.5', r'steps=1\.5: expected int'),
        ('--config.loss.beta=high', r'loss\.beta=high: expected float'),
        ('--config.export=maybe', r'export=maybe: expected bool'),
    ],
)
def test_bad_flags_are_refused_before_anything_runs(flag, message):
    with pytest.raises(ConfigError, match=message):
        check_flags([flag])


def test_good_flags_pass():
    check_flags(
        [
            f'--config={CONFIG}',
            '--config.optim.lr=1e-6',
            '--config.loss.beta=0.2',
            '--config.steps=10',
            '--config.export=false',
            '--config.checkpoint.resume',
            '--noconfig.export',
            '--verbosity=1',
        ]
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').mkdir()
    for name in ('epa.py', 'dpo.py'):
        (tmp_path / 'configs' / name).write_text('')


@pytest.mark.usefixtures('files')
@pytest.mark.parametrize(
    ('value', 'message'),
    [
        (
            'configs/ppa.py',
            r'=configs/ppa\.py: no such file; did you mean configs/epa\.py\?',
        ),
        ('configs/epa.py/x', r'no such file \(in /'),
        ('configs', r'=configs: no such file \(in /'),
        ('nowhere/epa.py:tiny', r'=nowhere/epa\.py:tiny: no such file \(in /'),
        ('', '--config=: no such file'),
    ],
)
def test_a_file_that_is_none(value, message):
    for flags in ([f'--config={value}'], ['--config', value, '--config.steps=1']):
        with pytest.raises(ConfigError, match=message):
            check_flags(flags)


@pytest.mark.usefixtures('files')
def test_what_follows_a_colon_goes_to_the_file():
    check_flags(['--config=configs/epa.py:tiny'])
    check_flags(['--config', 'configs/epa.py:tiny', '--verbosity=1'])


@pytest.mark.parametrize(
    ('flags', 'code', 'message'),
    [
        ([], 1, '--config: missing; name a file'),
        (
            ['--config=experiments/stories260k.py'],
            1,
            'did you mean experiments/stories260k_',
        ),
        (['--help'], 1, '--distributed'),
    ],
    ids=['none', 'mistyped', 'help'],
)
def test_a_command_says_so_in_one_message(repo_root, flags, code, message):
    command = [sys.executable, '-m', 'epa_jax.train', *flags]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert (done.returncode, message in done.stdout + done.stderr) == (code, True)
    assert 'Traceback' not in done.stderr
    if flags != ['--help']:
        assert done.stderr.count('\n') == 1
