"""Stands for gcloud, xpk and kubectl: records its calls and answers as a test says.

`answers.json` beside the recording holds, for each kind of call, the answers in order:
[exit code, standard output, standard error]. The last one is given from then on.
"""

import json
import os
import sys
from pathlib import Path


def kind(words: list[str]) -> str:
    """What a call is for: 'describe', 'ssh status', 'workload create'..."""
    if words[:4] == ['gcloud', 'compute', 'tpus', 'queued-resources']:
        verb = words[4]
        if verb != 'ssh':
            return verb
        (command,) = (w for w in words if w.startswith('--command='))
        after = command.rpartition('tpu_scripts/worker.sh ')[2]
        return f'ssh {after.split()[0]}'
    return ' '.join(words[1:3])


def main() -> int:
    folder = Path(os.environ['STUB'])
    words = sys.argv[1:]
    with (folder / 'calls.jsonl').open('a') as file:
        file.write(json.dumps(words) + '\n')
    path = folder / 'answers.json'
    answers = json.loads(path.read_text())
    waiting = answers.get(kind(words), [[0, '', '']])
    code, out, error = waiting[0]
    if len(waiting) > 1:
        answers[kind(words)] = waiting[1:]
        path.write_text(json.dumps(answers))
    sys.stdout.write(out)
    sys.stderr.write(error)
    return int(code)


if __name__ == '__main__':
    sys.exit(main())
