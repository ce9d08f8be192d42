"""Run folders written by hand."""

import json

from epa_jax.config import defaults, flatten, resolve


def write(folder, *, accuracy=0.75, seed=0, loss='dpo', steps=40, finished=True, **keys):
    """A run of `steps` steps; `keys` are further keys with __ for the dots."""
    config = defaults()
    config.workdir, config.seed, config.loss.name = str(folder), seed, loss
    config.model.path, config.data.train = 'model', 'pairs.jsonl'
    flat = flatten(resolve(config)) | {k.replace('__', '.'): v for k, v in keys.items()}
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(flat))
    lines = [
        {'step': s, 'loss': 1 / s, 'rewards/accuracies': 0.5 + 0.01 * s}
        for s in range(1, steps + 1)
    ]
    ends = [
        {'step': s, 'eval/rewards/accuracies': a, 'eval/rewards/margins': m}
        for s, a, m in ((0, 0.5, 0.0), (steps, accuracy, 0.25))
    ]
    text = ''.join(json.dumps(line) + '\n' for line in [ends[0], *lines, ends[1]])
    (folder / 'metrics.jsonl').write_text(text)
    (folder / 'data_report.json').write_text(json.dumps({'held_out': {'examples': 100}}))
    if finished:
        summary = {'eval_first': ends[0], 'eval_last': ends[1], 'seconds': 12.0}
        (folder / 'summary.json').write_text(json.dumps(summary))
    return folder
