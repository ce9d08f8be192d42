"""Kills a run again and again: python -m tests.processes.killed FOLDER KILLS SEED.

The run of FOLDER/run is a child of this process, which has imported everything once; it is
killed with SIGKILL at random moments (before the first step, after some steps, in the
middle of a save) and started again, until it ends. FOLDER/whole is the same run, left
alone. FOLDER/lives.json tells of every life of the first.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from epa_jax.train import show_log, train
from tests import small_run

EVERY = 3  # steps between saves
KEYS = {'checkpoint__every': EVERY, 'checkpoint__keep_last': 2, 'log__eval_every': 7}
STEPS_A_KILL = 9


def start(folder, name, steps):
    """The child that trains; it ends with code 0 when the run has."""
    child = os.fork()
    if child == 0:
        log = os.open(folder / f'{name}.log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = 1
        try:
            show_log()
            train(small_run.config(folder, name, steps=steps, **KEYS))
            code = 0
        finally:
            os._exit(code)
    return child


def last_step(run):
    """Of the newest whole line of metrics; 0 before the first."""
    file = run / 'metrics.jsonl'
    text = file.read_text() if file.exists() else ''
    lines = text[: text.rfind('\n') + 1].splitlines()
    return json.loads(lines[-1])['step'] if lines else 0


def saved_steps(run):
    """Complete checkpoints."""
    folder = run / 'checkpoints'
    names = os.listdir(folder) if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


def unfinished(run):
    """Names of saves that are being written."""
    folder = run / 'checkpoints'
    return {
        name for name in (os.listdir(folder) if folder.exists() else []) if 'tmp' in name
    }


def live(child, until):
    """Waits for a moment; False if the child ends before."""
    end = time.monotonic() + 300
    while not until():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        assert time.monotonic() < end, 'nothing happens'
        time.sleep(0.001)
    return True


def moment(kind, run, rng):
    """A function that tells whether the moment to kill has come."""
    if kind == 'start':
        end = time.monotonic() + rng.uniform(0, 4)
        return lambda: time.monotonic() > end
    before, first = unfinished(run), last_step(run)
    target = first + rng.randint(1, STEPS_A_KILL)
    if kind == 'step':
        return lambda: last_step(run) >= target
    return lambda: last_step(run) >= first and bool(unfinished(run) - before)


def main():
    folder, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(sys.argv[3])
    steps = kills * (STEPS_A_KILL + EVERY)
    run, lives = folder / 'run', []
    for number in range(kills):
        kind = ('save', 'step', 'save', 'step', 'start')[number % 5]
        child = start(folder, 'run', steps)
        alive = live(child, moment(kind, run, rng))
        assert alive, f'life {number} ended by itself; see run.log'
        time.sleep(rng.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lives.append(
            {
                'kind': kind,
                'reached': last_step(run),
                'saved': saved_steps(run),
                'unfinished': sorted(unfinished(run)),
            }
        )
    for name in ('run', 'whole'):
        _, status = os.waitpid(start(folder, name, steps), 0)
        assert status == 0, f'{name} failed; see {name}.log'
    (folder / 'lives.json').write_text(json.dumps(lives))


if __name__ == '__main__':
    main()
