"""What every policy of the study is measured on, and the measuring.

Matrix products are in full float32 here, whatever a run trains with: differences to the
start are small, and a GPU would round factors to 10 bits.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.data.load import load_datasets
from epa_jax.data.streams import load_streams
from epa_jax.evals.answers import answer
from epa_jax.evals.generation import sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import score
from epa_jax.evals.tasks import Task, read_task
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.schema import RunConfig
from epa_jax.types import Params, TokenExample


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What every policy is measured on.

    Attributes:
      tasks: questions by name.
      texts: held-out token examples by name; samples of the start among them, so that the
        fall of their log-prob is a KL.
      rows: computed together.
    """

    tasks: Mapping[str, Task]
    texts: Mapping[str, list[TokenExample]]
    rows: int = 2


def held_out(run: RunConfig, files: Mapping[str, Path]) -> dict[str, list[TokenExample]]:
    """Examples that no run trains on, by name.

    Args:
      run: any run with both streams.
      files: held-out 'pairs', 'sft' and 'text'.
    """
    tokenizer = load_tokenizer(run.model.path)
    loaded = functools.partial(load_datasets, tokenizer=tokenizer, min_strong=1)
    trained = {e.prompt_key for e in loaded(run.data).train}
    pairs = loaded(dataclasses.replace(run.data, train=str(files['pairs'])))
    sft = dataclasses.replace(run.sft, train=str(files['sft']))
    text = dataclasses.replace(run.pretrain, train=str(files['text']))
    streams = load_streams(dataclasses.replace(run, sft=sft, pretrain=text), tokenizer)
    found = {stream.name: stream.train for stream in streams}
    found['pairs'] = [e for e in pairs.train if e.prompt_key not in trained]
    return found


def samples(
    run: RunConfig, texts: Mapping[str, list[TokenExample]], count: int, file: Path
) -> dict[str, list[TokenExample]]:
    """Responses of the start to the first prompts of the pairs and of the SFT data.

    Args:
      run: names the start.
      texts: from `held_out`.
      count: prompts of each.
      file: keeps their tokens, so that every process measures the same ones.
    """
    if not file.exists():
        spec, params = load_model(run.model.path)
        stop = int(load_tokenizer(run.model.path).eos_token_id)
        rule = Sampling(run.data.max_response_tokens, (stop,))
        drawn = {}
        for name in ('pairs', 'sft'):
            prompts = [example.prompt_ids for example in texts[name][:count]]
            key = jax.random.key(0)
            found = sample(params, spec, Compute(), prompts, rule, key=key)
            drawn[name] = [ids.tolist() for ids in found]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(drawn) + '\n', 'utf-8')
    kept = json.loads(file.read_text('utf-8'))
    return {
        f'own_{name}': [
            dataclasses.replace(example, response_ids=(np.array(ids, np.int32),))
            for example, ids in zip(texts[name], responses, strict=False)
        ]
        for name, responses in kept.items()
    }


def questions(tasks: Mapping[str, Path], limit: int) -> dict[str, Task]:
    """The first questions of each task."""
    return {name: read_task(str(path), limit=limit) for name, path in tasks.items()}


def fingerprint(bench: Bench) -> str:
    """Of all that is measured; runs are compared with a start of the same."""
    digest = hashlib.sha256()
    for name in sorted(bench.texts):
        for example in bench.texts[name]:
            for ids in (example.prompt_ids, *example.response_ids):
                digest.update(ids.tobytes() + b'|')
    for name in sorted(bench.tasks):
        for question in bench.tasks[name].questions:
            digest.update(repr((question.options, question.gold)).encode())
    return digest.hexdigest()[:16]


def measure(
    bench: Bench, params: Params, spec: ModelSpec, run: RunConfig
) -> dict[str, Any]:
    """Log-probs of every question's options and of every held-out response."""
    tokenizer = load_tokenizer(run.model.path)
    with jax.default_matmul_precision('float32'):
        tasks = {
            name: answer(task, params, spec, Compute(), tokenizer, rows=bench.rows)
            for name, task in bench.tasks.items()
        }
        texts = {}
        for name, examples in bench.texts.items():
            prompts = [example.prompt_ids for example in examples]
            answers = [example.response_ids for example in examples]
            found = score(params, spec, Compute(), prompts, answers, rows=bench.rows)
            texts[name] = {
                'logps': found.logps.tolist(),
                'tokens': [[len(ids) for ids in responses] for responses in answers],
            }
    return {
        'bench': fingerprint(bench),
        'tasks': {name: result.summary() for name, result in tasks.items()},
        'questions': {name: result.records() for name, result in tasks.items()},
        'texts': texts,
    }
