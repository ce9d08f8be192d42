"""What runs on the machines themselves: worker.sh and cuda.sh, for real."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.tpu_scripts.cloud import SCRIPTS, Cloud, printed

SECONDS = 60  # on a busy machine


@pytest.fixture
def code(tmp_path):
    """A copy of the scripts with an environment beside them, as on a worker."""
    folder = tmp_path / 'epa_jax'
    shutil.copytree(SCRIPTS, folder / 'tpu_scripts')
    (folder / '.venv/bin').mkdir(parents=True)
    (folder / '.venv/bin/python').symlink_to(sys.executable)
    return folder


@pytest.fixture
def worker(code, tmp_path):
    env = os.environ | {'EPA_JOB': str(tmp_path / 'job'), 'EPA_STOP_SECONDS': '5'}

    def call(*arguments, code_=0):
        done = subprocess.run(
            ['bash', str(code / 'tpu_scripts/worker.sh'), *arguments],
            capture_output=True, text=True, env=env, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == code_, done.stderr
        return done.stdout + done.stderr

    yield call
    call('stop')


def state(worker):
    word, _, found = worker('status').split()
    assert word == 'epa_worker'
    return found


def ends(worker):
    end = time.monotonic() + SECONDS
    while (found := state(worker)) == 'running':
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def until_ready(worker):
    end = time.monotonic() + SECONDS
    while 'ready' not in worker('log', '9').splitlines():
        assert time.monotonic() < end
        time.sleep(0.05)


def python(text):
    return ('python', '-S', '-c', text)


@pytest.mark.parametrize('exit_code', ['0', '75', '3'])
def test_a_worker_keeps_the_exit_code(worker, exit_code):
    assert state(worker) == 'none'
    worker('start', 'a', *python(f'import sys; print("it is on"); sys.exit({exit_code})'))
    assert ends(worker) == exit_code
    assert 'it is on' in worker('log', '5')


def test_a_command_runs_beside_the_code_with_its_environment(worker, code):
    worker(
        'start', 'a', *python('import os, sys; print(os.getcwd(), sys.argv)'), 'a b', "'"
    )
    ends(worker)
    assert f"{code} ['-c', 'a b', \"'\"]" in worker('log', '1')


def test_one_command_at_a_time(worker):
    worker('start', 'first', 'sleep', '60')
    assert 'first runs here' in worker('start', 'second', 'true', code_=1)
    worker('start', 'first', 'sleep', '60')  # the same start, repeated
    assert state(worker) == 'running'
    worker('stop')
    assert ends(worker) == '143'
    worker('start', 'second', 'true')
    assert ends(worker) == '0'
    assert worker('log', '10').count('== ') == 2


def test_a_start_that_is_repeated_after_the_end_does_nothing(worker):
    worker('start', 'a', 'false')
    assert ends(worker) == '1'
    worker('start', 'a', 'true')
    assert state(worker) == '1'


SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.5)
    print('saved')
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""


def test_stop_lets_a_command_save(worker):
    worker('start', 'a', *python(SAVES))
    until_ready(worker)
    worker('stop')
    assert ends(worker) == '75'
    assert 'saved' in worker('log', '3')


def test_stop_ends_a_command_that_does_not_listen(worker):
    stubborn = 'import signal, time; signal.signal(15, signal.SIG_IGN); print("ready",'
    worker('start', 'a', *python(f'{stubborn} flush=True); time.sleep(60)'))
    until_ready(worker)
    worker('stop')
    assert ends(worker) == 'killed'


def test_a_machine_that_was_rebooted_says_killed(worker, tmp_path):
    worker('start', 'a', 'sleep', '60')
    os.killpg(int((tmp_path / 'job/pid').read_text()), signal.SIGKILL)
    assert ends(worker) == 'killed'


def test_words_that_a_worker_does_not_know(worker):
    assert 'expected install, start' in worker('begin', code_=1)
    assert 'no log at' in worker('log', '3', code_=1)


def test_install_makes_the_environment_for_tpus(code, tmp_path):
    (code / 'setup_env.sh').write_text(
        '#!/bin/sh\necho "$PWD EXTRA=$EXTRA"; command -v uv\n'
    )
    (code / 'setup_env.sh').chmod(0o755)
    uv = tmp_path / 'home/.local/bin/uv'
    uv.parent.mkdir(parents=True)
    uv.write_text('')
    uv.chmod(0o755)
    done = subprocess.run(
        ['bash', str(code / 'tpu_scripts/worker.sh'), 'install'],
        capture_output=True, text=True, timeout=SECONDS,
        env={'PATH': os.environ['PATH'], 'HOME': str(tmp_path / 'home')},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == f'{code} EXTRA=tpu', done.stderr
    assert done.stdout.splitlines()[1].endswith('/uv')


@pytest.mark.parametrize('works', ['pip', 'curl', ''])
def test_install_gets_uv_by_pip_or_by_its_installer(code, tmp_path, works):
    tools = tmp_path / 'tools'
    tools.mkdir()
    for tool in ('bash', 'dirname', 'hostname', 'sh'):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    for tool, name in {'python3': 'pip', 'curl': 'curl'}.items():
        body = f'echo "echo {tool} got it"; exit {0 if works == name else 1}'
        (tools / tool).write_text(f'#!/bin/sh\n{body}\n')
        (tools / tool).chmod(0o755)
    (code / 'setup_env.sh').write_text('#!/bin/sh\necho set up\n')
    (code / 'setup_env.sh').chmod(0o755)
    done = subprocess.run(
        ['bash', str(code / 'tpu_scripts/worker.sh'), 'install'],
        capture_output=True, text=True, timeout=SECONDS,
        env={'PATH': str(tools), 'HOME': str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode == 0) == bool(works)
    assert ('set up' in done.stdout) == bool(works)
    assert ('neither with pip nor' in done.stderr) == (not works)


def cuda(code, *arguments, exit_code=0):
    done = subprocess.run(
        ['bash', str(code / 'tpu_scripts/cuda.sh'), *arguments],
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == exit_code, done.stderr
    return done.stdout, done.stderr


COUNTS = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(str(n := int(path.read_text()) + 1 if path.exists() else 1))
sys.exit(0 if n == 3 else 75)
"""


def test_cuda_runs_again_after_a_preemption(code, tmp_path):
    count = tmp_path / 'count'
    _, error = cuda(code, 'run', '--poll=0', '--', *python(COUNTS), str(count))
    assert count.read_text() == '3'
    assert error.count('preempted') == 2


def test_cuda_goes_on_only_so_often(code, tmp_path):
    count = tmp_path / 'count'
    run = ('run', '--poll=0', '--retries=1', '--', *python(COUNTS), str(count))
    _, error = cuda(code, *run, exit_code=75)
    assert count.read_text() == '2'
    assert 'preempted more than 1 times' in error


def test_cuda_hands_on_other_codes(code):
    cuda(code, 'run', '--poll=0', '--', *python('raise SystemExit(7)'), exit_code=7)


def test_cuda_tells_processes_of_one_another(code):
    text = 'import os; print({k: v for k, v in os.environ.items() if k.startswith("JAX_")})'
    them = ('--coordinator=host:1234', '--processes=2', '--process=1')
    out, _ = cuda(code, 'run', *them, '--', *python(text))
    for name, value in {
        'COORDINATOR_ADDRESS': 'host:1234', 'NUM_PROCESSES': '2', 'PROCESS_ID': '1',
    }.items():  # fmt: skip
        assert f"'JAX_{name}': '{value}'" in out


def test_a_sigterm_reaches_the_command_of_cuda_which_is_not_run_again(code):
    process = subprocess.Popen(
        ['bash', str(code / 'tpu_scripts/cuda.sh'), 'run', '--poll=0', '--',
         *python(SAVES)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=SECONDS)
    assert out.split() == ['saved']  # and 'ready' no second time
    assert process.returncode == 75


@pytest.mark.parametrize(
    ('arguments', 'wrong'),
    [
        (['setup', '--cuda=11'], '--cuda=11: expected 12 or 13'),
        (['run'], 'no command'),
        (['run', '--processes=2', '--', 'x'], 'needs --coordinator=HOST:PORT'),
        (['run', '--coordinator=host', '--', 'x'], 'expected HOST:PORT'),
        (['run', '--coordinator=h:1', '--processes=2', '--process=2', '--', 'x'],
         '--process=2: expected 0 to'),
        (['begin'], 'begin: expected setup or run'),
    ],
)  # fmt: skip
def test_mistakes_are_named(code, arguments, wrong):
    assert wrong in cuda(code, *arguments, exit_code=2)[1]


def test_cuda_asks_for_its_environment(code):
    (code / '.venv/bin/python').unlink()
    assert 'cuda.sh setup first' in cuda(code, 'run', '--', 'x', exit_code=1)[1]


def test_a_dry_run_of_cuda_prints_the_commands(tmp_path):
    cloud = Cloud(tmp_path)
    out, _ = cloud.run('cuda.sh', 'setup', '--cuda=12', '--dry-run')
    assert printed(out) == [['env', 'EXTRA=cuda12', str(SCRIPTS.parent / 'setup_env.sh')]]
    out, _ = cloud.run('cuda.sh', 'run', '--dry-run', '--', 'python', 'a b')
    assert printed(out)[0][2:] == ['python', 'a b']
