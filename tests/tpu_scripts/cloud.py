"""Runs the scripts against the stub, and checks calls against the documented flags."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.tpu_scripts import stub

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / 'tpu_scripts'
FLAGS = json.loads((HERE / 'flags.json').read_text())['commands']
NAMED = ('--name=slice', '--zone=us-west4-a')
SLICE = (*NAMED, '--type=v5e-16')
TRAIN = (
    'python', '-m', 'epa_jax.train', '--config=experiments/x.py:v5e-16',
    '--config.workdir=gs://bucket/runs/it\'s',
    '--config.data.system_prompt=Be "good" & $HOME',
)  # fmt: skip
QUICK = ('--poll=0', '--tries=2')
NO_SLICE = [1, '', 'ERROR: (gcloud) NOT_FOUND: Resource was not found\n']


def state(name):
    """What describe answers for a resource in a state."""
    return [0, f'{name}\n', '']


def workers(*states):
    """What `worker.sh status` answers on workers in these states."""
    lines = [f'epa_worker host-{i} {s}\n' for i, s in enumerate(states)]
    return [0, 'Using ssh batch size of 4.\n' + ''.join(lines), '']


@dataclasses.dataclass
class Cloud:
    """A folder with stubs of the tools, and what they are to answer."""

    folder: Path

    def __post_init__(self):
        for tool in ('gcloud', 'xpk', 'kubectl'):
            path = self.folder / 'bin' / tool
            path.parent.mkdir(exist_ok=True)
            start = f'exec {sys.executable} -I -S {HERE / "stub.py"} {tool} "$@"'
            path.write_text(f'#!/bin/sh\n{start}\n')
            path.chmod(0o755)
        self.answer()

    def answer(self, **kinds):
        """Sets answers; `ssh_status` stands for 'ssh status'."""
        found = {name.replace('_', ' '): answers for name, answers in kinds.items()}
        (self.folder / 'answers.json').write_text(json.dumps(found))

    def run(self, script, *arguments, code=0, **environment):
        """(standard output, standard error) of a script that exits with `code`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith('EPA_')}
        env = kept | {
            'PATH': f'{self.folder / "bin"}:{os.environ["PATH"]}',
            'STUB': str(self.folder),
            **environment,
        }
        done = subprocess.run(
            ['bash', str(SCRIPTS / script), *arguments],
            capture_output=True,
            text=True,
            env=env,
            timeout=120,
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout, done.stderr

    def calls(self):
        """The calls so far, as lists of words."""
        path = self.folder / 'calls.jsonl'
        return [json.loads(line) for line in path.read_text().splitlines()]

    def kinds(self):
        """What the calls so far were for."""
        return [stub.kind(words) for words in self.calls()]


def printed(out):
    """The commands that a dry run printed, as lists of words."""
    return [shlex.split(line) for line in out.splitlines()]


def check_flags(words):
    """Fails on a flag that the tool's own help does not name, or one without its value."""
    command = max(
        (c for c in FLAGS if words[: len(c.split())] == c.split()), key=len, default=None
    )
    assert command, f'no documented command: {shlex.join(words)}'
    for word in words:
        if word.startswith('--'):
            flag, equals, value = word.partition('=')
            assert flag in FLAGS[command], f'{command} has no {flag}'
            assert bool(value) == (FLAGS[command][flag] == 'value'), word
            assert bool(equals) == bool(value), word
