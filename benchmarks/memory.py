"""Memory that the compiler plans: python -m benchmarks.memory --help.

`logprobs`: temporary memory of the log-prob stage, forward and backward, against
vocabulary, rows and row length. `remat`: that of a step's gradient under each
rematerialisation policy, with its time where --seconds is given. Nothing is allocated for
what is only compiled, so shapes may be larger than this machine.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine, records, synthetic, task
from epa_jax.frozen import NOTHING
from epa_jax.models import transformer
from epa_jax.vocabulary import Blocks, token_logps

RESULTS = machine.REPO / 'benchmarks' / 'results'
VOCABULARIES = (8192, 32768, 131072)
ROWS = (1, 4, 16)
LENGTH, WIDTH = 1024, 576
BLOCKS = Blocks(transformer.Compute().logprob_chunk, transformer.Compute().vocab_block)
POLICIES = ('none', 'dots', 'full')


def logprob_temp(vocab: int, rows: int, length: int, width: int, blocks: Blocks) -> int:
    """Temporary bytes of log-probs and their gradient; the gradients themselves apart."""

    def total(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
        count = jnp.int32(targets.shape[1])
        return jnp.sum(token_logps(hidden, head, targets, count, blocks))

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    targets = shape(rows, length, dtype=jnp.int32)
    function = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    lowered = function.lower(shape(rows, length, width), shape(vocab, width), targets)
    return synthetic.temp_bytes(lowered.compile())


def logprob_rows(
    vocabularies: Sequence[int],
    rows: Sequence[int],
    length: int,
    width: int,
    blocks: Blocks,
) -> list[dict[str, Any]]:
    """A line for each vocabulary and number of rows."""
    return [
        {
            'vocab': vocab,
            'rows': count,
            'row_length': length,
            'd_model': width,
            'chunk': blocks.chunk,
            'block': blocks.block,
            'temp_mb': logprob_temp(vocab, count, length, width, blocks) / 1e6,
            'logits_mb': 4 * vocab * count * length / 1e6,
            'commit': machine.commit(),
        }
        for vocab in vocabularies
        for count in rows
    ]


def remat_rows(
    shape: str,
    ratio: task.Ratio,
    prompts: int,
    rounds: int,
    policies: Sequence[str] = POLICIES,
) -> list[dict[str, Any]]:
    """A line for each policy; seconds where `rounds` is not 0."""
    spec = synthetic.spec_of(shape)
    lengths = synthetic.real_lengths(ratio, prompts)
    step = synthetic.groups(lengths, spec.vocab_size)
    batches = synthetic.pack(step)
    computes = {policy: transformer.Compute(remat=policy) for policy in policies}
    goals = {p: synthetic.objective(spec, ratio, c) for p, c in computes.items()}
    abstract = transformer.abstract_params(spec, jnp.float32)
    taken: dict[str, list[float]] = {policy: [] for policy in policies}
    if rounds:
        params = transformer.init_params(spec, jax.random.key(0))
        made = {p: synthetic.gradient(g, params, batches).run for p, g in goals.items()}
        taken = synthetic.interleaved(made, rounds)
    out = []
    for policy, goal in goals.items():
        compiled = jax.jit(goal.gradients).lower(abstract, batches[0], NOTHING).compile()
        seconds = records.spread(taken[policy]).median if rounds else ''
        out.append(
            {
                'shape': shape,
                'ratio': f'1:{ratio.strong}:{ratio.weak}',
                'prompts': prompts,
                'row_length': batches[0].tokens.shape[1],
                'remat': policy,
                'temp_mb': synthetic.temp_bytes(compiled) / 1e6,
                'seconds': seconds,
                'rounds': rounds,
                'commit': machine.commit(),
            }
        )
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Writes memory_logprobs.csv and memory_remat.csv."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.memory', description='Memory that the compiler plans.'
    )
    add = parser.add_argument
    add('--what', nargs='*', default=['logprobs', 'remat'], choices=['logprobs', 'remat'])
    add('--shape', default='135M', choices=sorted(task.SHAPES), help='for remat')
    add('--ratio', default='1:1:2', help='for remat')
    add('--prompts', type=int, default=4, help='for remat')
    add('--rounds', type=int, default=0, help='time the policies too, in so many rounds')
    add('--results', type=Path, default=RESULTS, help='folder of the results')
    args = parser.parse_args(argv)
    print(machine.machine())
    if 'logprobs' in args.what:
        rows = logprob_rows(VOCABULARIES, ROWS, LENGTH, WIDTH, BLOCKS)
        print(records.show(rows))
        records.write_csv(args.results / 'memory_logprobs.csv', rows)
    if 'remat' in args.what:
        rows = remat_rows(args.shape, task.ratio(args.ratio), args.prompts, args.rounds)
        print(records.show(rows))
        path = args.results / 'memory_remat.csv'
        records.write_csv(path, records.merged(path, rows, ('shape', 'ratio', 'prompts')))


if __name__ == '__main__':
    main()
