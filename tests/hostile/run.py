"""A whole run that is watched: python -m tests.hostile.run FOLDER.

Trains a small model in FOLDER, resumes and looks at it. Prints, as a line of JSON, files
opened for writing or removed, and names that were unpickled, as Python's audit events tell.
"""

import json
import os
import sys
from pathlib import Path

WROTE: set[str] = set()
UNPICKLED: set[str] = set()
# event -> for each of its first arguments, paths, where the folder's descriptor stands
CHANGES = {
    'os.remove': (1,),
    'os.rmdir': (1,),
    'os.mkdir': (2,),
    'os.rename': (2, 3),
    'os.link': (2, 3),
    'os.symlink': (2,),
}


def listen(event: str, args: tuple) -> None:
    if event == 'open':
        path, _, flags = args
        if isinstance(path, str | bytes) and (flags or 0) & (os.O_WRONLY | os.O_RDWR):
            WROTE.add(os.path.abspath(os.fsdecode(path)))
    elif event in CHANGES:
        for path, place in zip(args, CHANGES[event], strict=False):
            if isinstance(path, str | bytes):
                WROTE.add(located(os.fsdecode(path), args[place]))
    elif event == 'pickle.find_class':
        UNPICKLED.add('.'.join(args))


def located(path: str, folder: int) -> str:
    """A path in an open folder, or in the current one where `folder` is -1."""
    base = os.getcwd() if folder == -1 else os.readlink(f'/proc/self/fd/{folder}')
    return os.path.normpath(os.path.join(base, path))


def main() -> None:
    from epa_jax.comparison.runs import read_run
    from epa_jax.policy import load_policy
    from epa_jax.sharding import make_mesh
    from epa_jax.train import train
    from tests import small_run

    folder = Path(sys.argv[1])
    small_run.write(folder, pairs=20)
    sys.addaudithook(listen)
    changes = {'checkpoint__every': 1, 'reference__cache_dir': str(folder / 'run/cache')}
    for steps in (1, 2):
        run = small_run.config(folder, 'run', steps=steps, **changes)
        if steps == 2:  # another length of the same run
            (folder / 'run' / 'config.json').unlink()
        train(run)
    load_policy(folder / 'run', step=2, mesh=make_mesh(run.mesh))
    read_run(folder / 'run')
    print(json.dumps({'wrote': sorted(WROTE), 'unpickled': sorted(UNPICKLED)}))


if __name__ == '__main__':
    main()
