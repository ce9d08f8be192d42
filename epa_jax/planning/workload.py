"""How much a run computes: rows, micro-batches and tokens of a step, and steps."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.batches import make_batches
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.data.packing import Layout, cells, cheapest
from epa_jax.data.pipeline import Pipeline
from epa_jax.data.streams import load_streams
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.losses import Loss
from epa_jax.prepare import steps_of
from epa_jax.schema import RunConfig
from epa_jax.types import TokenGroup

FILL = 0.9  # of rows that hold several groups, where lengths are assumed
SAMPLE = 2048  # groups that statistics are taken from


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a step and a run hold.

    Attributes:
      layout: of preference rows, the longest.
      text: of rows of text, the longest; equal to `layout` without streams.
      micro_batches: of preference rows, in a step; with shorter rows counts in part.
      text_micro_batches: of text rows, in a step.
      tokens: real tokens of a step, text included.
      scored: of those, predicted ones.
      pairs: of a query and a key that it sees, in a step.
      steps: in the run.
      prompts: different prompts that the run visits.
      source: where the numbers are from.
    """

    layout: Layout
    text: Layout
    micro_batches: float
    text_micro_batches: int
    tokens: float
    scored: float
    pairs: float
    steps: int
    prompts: int
    source: str


def workload(run: RunConfig, mesh: Mesh, loss: Loss) -> Workload:
    """From `plan.*` where lengths are given, else from the data as training reads it.

    Raises:
      ConfigError: neither is there, or a row is too short.
    """
    if run.plan.prompt_tokens:
        return _assumed(run, mesh)
    if not Path(run.data.train).exists():
        raise ConfigError(
            f'data.train={run.data.train!r} is not here to measure; give its mean lengths: '
            'plan.prompt_tokens, plan.response_tokens and plan.examples, and '
            'batch.row_length'
        )
    return _measured(run, mesh, loss)


def visible_pairs(prompt: float, response: float, responses: float) -> float:
    """Pairs of a query and a key in a group whose responses share the prompt."""
    own = response * (response + 1) / 2
    return prompt * (prompt + 1) / 2 + responses * (response * prompt + own)


def _assumed(run: RunConfig, mesh: Mesh) -> Workload:
    cfg, batch = run.plan, run.batch
    if not (cfg.response_tokens and batch.row_length and (cfg.examples or run.steps)):
        raise ConfigError(
            'plan.prompt_tokens needs plan.response_tokens, plan.examples (or steps) and '
            'batch.row_length beside it'
        )
    responses = 1 + run.data.n_strong + run.data.n_weak
    group = cfg.prompt_tokens + responses * cfg.response_tokens
    fit = float(batch.row_length // group)
    if fit >= 2:  # of varied lengths some fit where the mean does not
        fit = max(fit, FILL * batch.row_length / group)
    if fit == 0:
        raise ConfigError(
            f'batch.row_length={batch.row_length}: a prompt of {cfg.prompt_tokens} tokens '
            f'with {responses} responses of {cfg.response_tokens} needs {group}'
        )
    rows = batch.rows or sharding.batch_devices(mesh)
    _check_rows(rows, mesh)
    layout = Layout(rows, batch.row_length, min(2 * int(fit), batch.prompts), responses)
    steps = steps_of(run, cfg.examples)
    sequences, text = _assumed_text(run, rows)
    per_prompt = visible_pairs(cfg.prompt_tokens, cfg.response_tokens, responses)
    return Workload(
        layout=layout,
        text=text if sequences else layout,
        micro_batches=math.ceil(batch.prompts / (fit * rows)),
        text_micro_batches=math.ceil(
            sum(math.ceil(n / (text.row_length // size)) for n, size in sequences) / rows
        ),
        tokens=batch.prompts * group + sum(n * size for n, size in sequences),
        scored=batch.prompts * responses * cfg.response_tokens
        + sum(n * size for n, size in sequences),
        pairs=batch.prompts * per_prompt
        + sum(n * visible_pairs(size, 0, 0) for n, size in sequences),
        steps=steps,
        prompts=min(cfg.examples or steps * batch.prompts, steps * batch.prompts),
        source=f'assumed: prompts of {cfg.prompt_tokens} tokens, responses of '
        f'{cfg.response_tokens} (plan.*)',
    )


def _assumed_text(run: RunConfig, rows: int) -> tuple[list[tuple[int, int]], Layout]:
    """Sequences a step and their lengths, by stream, and the layout of their rows."""
    found = []
    if run.sft.train:
        if not run.plan.sft_tokens:
            raise ConfigError('sft.train needs plan.sft_tokens beside plan.prompt_tokens')
        found.append((run.sft.sequences, run.plan.sft_tokens))
    if run.pretrain.train:
        found.append((run.pretrain.sequences, run.pretrain.max_tokens))
    length = max([run.batch.row_length, *(size for _, size in found)])
    groups = max([min(n, length // size) for n, size in found], default=1)
    return found, Layout(rows, length, max(groups, 1), 1)


def _check_rows(rows: int, mesh: Mesh) -> None:
    ways = sharding.batch_devices(mesh)
    if rows % ways:
        raise ConfigError(
            f'batch.rows={rows}: expected a multiple of mesh.data * mesh.fsdp = {ways}'
        )


def _measured(run: RunConfig, mesh: Mesh, loss: Loss) -> Workload:
    tokenizer = load_tokenizer(run.model.tokenizer or run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=loss.needs.min_strong)
    streams = load_streams(run, tokenizer, {e.prompt_key for e in datasets.held_out})
    steps = steps_of(run, len(datasets.train))
    batches = make_batches(run, datasets, streams, mesh, steps)
    data = batches.train.preference
    count = min(SAMPLE, steps * run.batch.prompts)
    dataset = data.visits.dataset()
    groups = [data.group(dataset[i]) for i in range(count)]
    text = [
        (p.visits.prompts, [len(e.prompt_ids) + len(e.response_ids[0]) for e in p.examples])
        for p in batches.train.streams.values()
    ]
    layout = next((p.layout for p in batches.train.streams.values()), data.layout)
    prompts = run.batch.prompts
    text_rows = sum(
        math.ceil(n * float(np.mean(sizes)) / layout.row_length) for n, sizes in text
    )
    extra = sum(n * float(np.mean(sizes)) for n, sizes in text)
    return Workload(
        layout=data.layout,
        text=layout,
        micro_batches=_micro_batches(data, groups),
        text_micro_batches=math.ceil(text_rows / layout.rows),
        tokens=prompts * float(np.mean([g.num_tokens for g in groups])) + extra,
        scored=prompts * float(np.mean([_scored(g) for g in groups])) + extra,
        pairs=prompts * float(np.mean([_pairs(g) for g in groups]))
        + sum(n * float(np.mean([visible_pairs(s, 0, 0) for s in z])) for n, z in text),
        steps=steps,
        prompts=min(len(datasets.train), steps * prompts),
        source=f'measured on {count} prompts of {run.data.train}',
    )


def _micro_batches(data: Pipeline, groups: list[TokenGroup]) -> float:
    """Of a step, counted by their cells in those with the longest rows."""
    sizes, prompts = [group.num_tokens for group in groups], data.visits.prompts
    starts = range(0, max(len(sizes) - prompts, 0) + 1, prompts)
    steps = [sizes[start : start + prompts] for start in starts]
    computed = [cells(step, cheapest(step, data.layouts)) for step in steps]
    return float(np.mean(computed)) / (data.layout.rows * data.layout.row_length)


def _scored(group: TokenGroup) -> int:
    return sum(len(response) for response in group.response_ids)


def _pairs(group: TokenGroup) -> float:
    prompt = len(group.prompt_ids)
    return visible_pairs(prompt, 0, 0) + sum(
        visible_pairs(prompt, len(r), 1) - visible_pairs(prompt, 0, 0)
        for r in group.response_ids
    )
