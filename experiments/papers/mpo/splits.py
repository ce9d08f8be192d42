"""A file of records in two: to train on and to measure."""

import json
import os
import random
from pathlib import Path

from epa_jax.data.sources import records


def write_split(
    source: Path, folder: Path, *, count: int, seed: int = 0
) -> tuple[Path, Path]:
    """Writes `count` random records apart from the others.

    Args:
      source: a JSON or JSONL file, possibly .gz.
      folder: where both files go.
      count: held-out records.
      seed: of the choice.

    Returns:
      Paths of the others and of those held out.
    """
    lines = [record for _, record in records(str(source))]
    held = set(random.Random(seed).sample(range(len(lines)), count))
    folder.mkdir(parents=True, exist_ok=True)
    name = source.name.split('.')[0]
    paths = folder / f'{name}_train.jsonl', folder / f'{name}_held_out.jsonl'
    for path, wanted in zip(paths, (False, True), strict=True):
        rows = [row for i, row in enumerate(lines) if (i in held) == wanted]
        text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        part = path.with_suffix(f'.{os.getpid()}')  # another process may be reading
        part.write_text(text, 'utf-8')
        part.replace(path)
    return paths
