"""Attention's back ends on this machine: python -m benchmarks.attention --help.

Rows are packed from the lengths of HH-RLHF (benchmarks/lengths_hh.csv); queries, keys and
values are random. Every back end is compared with the same arithmetic in float32, output
and gradients, and timed forward and backward together.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine, records, synthetic, task
from epa_jax.models import attention
from epa_jax.models.mask import Tokens
from epa_jax.models.spec import ModelSpec

RESULTS = machine.REPO / 'benchmarks' / 'results' / 'attention.csv'


def inputs(spec: ModelSpec, rows: int, length: int) -> list[jax.Array]:
    """Queries, keys, values and the gradient of the output, float32."""
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (spec.n_heads, spec.n_kv_heads, spec.n_kv_heads, spec.n_heads)
    return [
        jax.random.normal(key, (rows, length, n, spec.head_dim), jnp.float32)
        for key, n in zip(keys, heads, strict=True)
    ]


def passes(backend: str, tokens: Tokens, precision: str | None = None) -> Callable:
    """Output and gradients of queries, keys and values; padding counts for nothing."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, dout: jax.Array) -> list[jax.Array]:
        with jax.default_matmul_precision(precision):
            real = (tokens.segments != 0)[:, :, None, None]
            attend = functools.partial(attention.attend, tokens=tokens, backend=backend)
            out, pull = jax.vjp(attend, q, k, v)
            return [jnp.where(real, out, 0), *pull(jnp.where(real, dout, 0))]

    return jax.jit(run)


def error(found: Sequence[jax.Array], exact: Sequence[jax.Array]) -> float:
    """The largest of the relative errors, in the norm of each array."""
    return max(
        float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b))
        for a, b in zip(found, exact, strict=True)
    )


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each back end."""
    spec = synthetic.spec_of(args.shape)
    lengths = synthetic.real_lengths(task.ratio(args.ratio), args.prompts)
    groups = synthetic.groups(lengths, spec.vocab_size)
    batch = synthetic.pack(groups, synthetic.layout(groups, args.rows))[0]
    tokens = Tokens(*map(jnp.asarray, (batch.positions, batch.segments, batch.branches)))
    exact_inputs = inputs(spec, *batch.tokens.shape)
    exact = passes('xla', tokens, 'highest')(*exact_inputs)
    cast = [x.astype(args.dtype) for x in exact_inputs]
    out = []
    for backend in args.backends:
        run = passes(backend, tokens)
        found = run(*cast)

        def timed(run: Callable = run) -> None:
            jax.block_until_ready(run(*cast))

        out.append(
            {
                'device': jax.devices()[0].device_kind,
                'shape': args.shape,
                'ratio': args.ratio,
                'rows': args.rows,
                'row_length': batch.tokens.shape[1],
                'dtype': args.dtype,
                'backend': backend,
                'error': error(found, exact),
                'milliseconds': 1e3 * machine.median_seconds(timed, total=args.seconds),
                'commit': machine.commit(),
            }
        )
    return out


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.attention',
        description="Errors and seconds of attention's back ends.",
    )
    add = parser.add_argument
    add('--shape', default='1B', choices=sorted(task.SHAPES))
    add('--ratio', default='1:1:2')
    add('--prompts', type=int, default=64)
    add('--rows', type=int, default=8)
    add('--dtype', default='bfloat16', choices=task.DTYPES)
    add('--backends', nargs='+', default=['xla', 'cudnn'], choices=attention.BACKENDS)
    add('--seconds', type=float, default=1.0, help='of measuring, for each back end')
    add('--out', type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one setting; rows of others in the file stay."""
    args = arguments(argv)
    print(machine.machine())
    rows = measured(args)
    print(records.show(rows))
    setting = ('device', 'shape', 'ratio', 'rows', 'dtype', 'backend')
    records.write_csv(args.out, records.merged(args.out, rows, setting))


if __name__ == '__main__':
    main()
