"""One of the processes of a run in a bucket: FOLDER URL RANK COUNT PORT."""

import os
import sys
from pathlib import Path

from epa_jax.train import train
from tests import small_run
from tests.processes.worker import connect

STEPS = 4
CHANGES = {'steps': STEPS, 'checkpoint__every': 2, 'batch__prompts': 4, 'mesh__data': 4}


def main() -> None:
    folder, url, *numbers = sys.argv[1:]
    connect(*map(int, numbers))
    places = {} if url == 'local' else {
        'workdir': f'{url}/run',
        'data__train': f'{url}/pairs.jsonl',
        # of this machine's own: only the first one's holds what was computed
        'reference__cache_dir': os.environ['EPA_CACHE'] + '/reference',
    }  # fmt: skip
    train(small_run.config(Path(folder), **CHANGES, **places))


if __name__ == '__main__':
    main()
