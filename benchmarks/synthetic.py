"""Batches of random tokens and a step's gradient on them, for measuring shapes."""

import csv
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import task
from benchmarks.records import RecordsError
from epa_jax.data import packing
from epa_jax.frozen import NOTHING
from epa_jax.losses import LOSSES, make_loss
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec, plain_llama
from epa_jax.train_step import Objective
from epa_jax.types import PackedBatch, Params, Role, TokenGroup

LENGTHS = Path(__file__).resolve().parent / 'lengths_hh.csv'


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of each of its responses."""

    prompt: int
    responses: tuple[int, ...]


def spec_of(shape: str, vocab: int | None = None) -> ModelSpec:
    """The architecture of a shape of `task.SHAPES`, perhaps with another vocabulary."""
    found = dict(task.SHAPES[shape])
    if vocab is not None:
        found['vocab_size'] = vocab
    return plain_llama(**found)


def real_lengths(ratio: task.Ratio, count: int, path: Path = LENGTHS) -> list[Lengths]:
    """Lengths of HH-RLHF prompts in the order of the file; weak ones from later lines.

    Raises:
      RecordsError: more than one strong negative, which pairs do not have.
    """
    if ratio.strong != 1:
        raise RecordsError('lengths of pairs: expected a ratio 1:1 or 1:1:WEAK')
    with path.open(encoding='utf-8') as file:
        rows = [[int(x) for x in row] for row in list(csv.reader(file))[1:]]
    out = []
    for i in range(count):
        prompt, *own = rows[i % len(rows)]
        weak = [rows[(i + 1 + k) % len(rows)][1 + k % 2] for k in range(ratio.weak)]
        out.append(Lengths(prompt, (*own, *weak)))
    return out


def groups(lengths: Sequence[Lengths], vocab: int, seed: int = 0) -> list[TokenGroup]:
    """Prompts and responses of random tokens; first chosen, then rejected, then weak."""
    rng = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(1, vocab, count, dtype=np.int32)

    out = []
    for key, wanted in enumerate(lengths):
        count = len(wanted.responses)
        roles = np.full(count, Role.WEAK, np.int8)
        roles[:2] = (Role.CHOSEN, Role.REJECTED)[:count]
        ratings = np.full(count, np.nan, np.float32)
        responses = tuple(tokens(n) for n in wanted.responses)
        out.append(TokenGroup(key, tokens(wanted.prompt), responses, roles, ratings))
    return out


def layout(step: Sequence[TokenGroup], rows: int = 1) -> packing.Layout:
    """Rows that fit the largest prompt with its responses."""
    sizes = [group.num_tokens for group in step]
    length = packing.automatic_row_length(max(sizes))
    most = max(min(len(step), length // min(sizes)), 1)
    return packing.Layout(rows, length, most, max(len(g.response_ids) for g in step))


def pack(
    step: Sequence[TokenGroup], shape: packing.Layout | None = None
) -> list[PackedBatch]:
    """Micro-batches of a step with reference log-probs of 0, which cost what any cost.

    Args:
      step: its prompts.
      shape: of a micro-batch; the step's own `layout` unless given.
    """
    shape = shape or layout(step)
    keys = max(group.key for group in step) + 1
    zeros = np.zeros((keys, shape.responses), np.float32)
    return packing.pack(step, shape, ref_logps=zeros)


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The gradient of one step, compiled.

    Attributes:
      run: computes it once and waits for it.
      compile_seconds: of tracing and compiling.
      temp_bytes: temporary memory that the compiler plans for a micro-batch.
    """

    run: Callable[[], None]
    compile_seconds: float
    temp_bytes: int


def objective(
    spec: ModelSpec, ratio: task.Ratio, compute: transformer.Compute
) -> Objective:
    """DPO for a ratio of 1:1, EPA for others, each with its own defaults."""
    return Objective(spec, compute, make_loss(ratio.loss, {}, LOSSES))


def gradient(goal: Objective, params: Params, batches: Sequence[PackedBatch]) -> Gradient:
    """Compiles the gradient of a step of micro-batches of one shape."""
    placed = [jax.tree.map(jnp.asarray, batch) for batch in batches]
    start = time.perf_counter()
    lowered = jax.jit(goal.gradients).lower(params, placed[0], NOTHING)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start

    def run() -> None:
        jax.block_until_ready([compiled(params, batch, NOTHING) for batch in placed])

    return Gradient(run, seconds, temp_bytes(compiled))


def temp_bytes(compiled: Any) -> int:
    """Temporary memory of a compiled program, arguments and results left out."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def interleaved(
    runs: Mapping[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of every function in each round, after one call of each to warm up."""
    for run in runs.values():
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    return taken
