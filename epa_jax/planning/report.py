"""A plan as data and as text."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from epa_jax.planning.abstract import AbstractRun, device_bytes
from epa_jax.planning.chips import PRICES_OF
from epa_jax.planning.compiled import Compiled
from epa_jax.planning.hlo import Collective
from epa_jax.planning.roofline import Cost, Roofline
from epa_jax.planning.topology import Topology


def as_data(
    planned: AbstractRun,
    programs: Sequence[Compiled],
    topology: Topology,
    roof: Roofline,
    cost: Cost,
) -> dict[str, Any]:
    """The plan as JSON holds it."""
    run, work = planned.run, planned.work
    needed = max(program.needed for program in programs)
    return {
        'topology': topology.name,
        'devices': topology.total,
        'mesh': dict(planned.mesh.shape),
        'model': dataclasses.asdict(planned.spec),
        'settings': {
            'loss': run.loss.name,
            'param_dtype': run.model.param_dtype,
            'compute_dtype': run.model.compute_dtype,
            'remat': run.model.remat,
            'optimizer': run.optim.name,
            'mu_dtype': run.optim.mu_dtype,
            'lora_rank': run.lora.rank,
            'reference': run.reference.mode if planned.loss.needs_reference else 'none',
            'prompts': run.batch.prompts,
            'rows': work.layout.rows,
            'row_length': work.layout.row_length,
        },
        'work': dataclasses.asdict(work),
        'memory': {
            'capacity': topology.chip.hbm,
            'needed': needed,
            'fits': fits(needed, topology),
            'parameters': device_bytes(planned.state.params),
            'optimizer': device_bytes(planned.state.opt_state),
            'frozen': device_bytes(planned.frozen),
            'programs': {
                p.name: p.memory and dataclasses.asdict(p.memory) | {'peak': p.memory.peak}
                for p in programs
            },
        },
        'collectives': [
            {'program': p.name, 'runs': p.times} | row
            for p in programs
            for row in by_kind(p.collectives)
        ],
        'roofline': dataclasses.asdict(roof) | {'binds': roof.binds, 'least': roof.least},
        'cost': dataclasses.asdict(cost),
        'compile_seconds': sum(p.seconds for p in programs),
    }


def fits(needed: float, topology: Topology) -> bool | None:
    """Whether a program of this size runs; None where the memory is unknown."""
    return needed <= topology.chip.hbm if topology.chip.hbm else None


def by_kind(collectives: Sequence[Collective]) -> list[dict[str, Any]]:
    """Counts and bytes by kind, in or out of loops, overlapped or not."""
    sums: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for one in collectives:
        row = sums[one.kind, one.in_loop, one.overlapped, one.crosses]
        row[0] += one.count
        row[1] += one.count * one.bytes
        row[2] += one.sent
    return [
        {
            'kind': kind,
            'in_loop': in_loop,
            'overlapped': overlapped,
            'between_slices': crosses,
            'count': int(count),
            'bytes': total,
            'sent': sent,
        }
        for (kind, in_loop, overlapped, crosses), (count, total, sent) in sorted(
            sums.items()
        )
    ]


def render(plan: Mapping[str, Any], price: float, efficiency: float, listed: bool) -> str:
    """The plan as text, a fact a line.

    Args:
      plan: from `as_data`.
      price: US dollars for a chip and hour; 0 says nothing of cost.
      efficiency: share of every peak that is assumed.
      listed: the price is that of the table, not the reader's own.
    """
    lines = [*_head(plan), *_memory(plan), *_collectives(plan), *_time(plan, efficiency)]
    return '\n'.join([*lines, *_cost(plan, price, listed)])


def _head(plan: Mapping[str, Any]) -> list[str]:
    work, settings, mesh = plan['work'], plan['settings'], plan['mesh']
    axes = ', '.join(f'{name} {size}' for name, size in mesh.items())
    text = work['text_micro_batches']
    return [
        f'Plan: {settings["loss"]} on {plan["topology"]} '
        f'({plan["devices"]} devices: {axes})',
        f'  step       {settings["prompts"]} prompts, {work["tokens"]:,.0f} tokens in '
        f'{work["micro_batches"]:.3g} micro-batches of {settings["rows"]} rows of '
        f'{settings["row_length"]}' + (f' and {text} of text' if text else ''),
        f'  lengths    {work["source"]}',
        f'  settings   parameters {settings["param_dtype"]}, compute '
        f'{settings["compute_dtype"]}, remat {settings["remat"]}, '
        f'{settings["optimizer"]} (first moment {settings["mu_dtype"]}), reference '
        f'{settings["reference"]}',
    ]


def size(count: float) -> str:
    """Bytes in words, in powers of 1000."""
    for unit in ('B', 'kB', 'MB'):
        if count < 999.5:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:.2f} GB'


def _memory(plan: Mapping[str, Any]) -> list[str]:
    memory = plan['memory']
    lines = ['Memory of each device while a program runs']
    for name, m in memory['programs'].items():
        if m is None:
            lines.append(f'  {name:10} does not fit: the compiler refuses it')
            continue
        parts = {
            'arguments': m['arguments'],
            'new outputs': m['outputs'],
            'temporaries': m['temporaries'],
            'code': m['code'],
            'the rest of the run': m['beside'],
        }
        summed = ' + '.join(f'{what} {size(count)}' for what, count in parts.items())
        lines.append(
            f'  {name:10} {size(m["peak"])} = {summed}; {size(m["donated"])} of outputs '
            'are written over arguments'
        )
    word = {True: 'fits', False: 'DOES NOT FIT', None: 'capacity unknown'}[memory['fits']]
    share = f' of {size(memory["capacity"])}' if memory['capacity'] else ''
    lines.append(
        f'  {word}: {size(memory["needed"])}{share}; of it parameters '
        f'{size(memory["parameters"])}, optimiser {size(memory["optimizer"])}, frozen '
        f'{size(memory["frozen"])}'
    )
    return lines


def _collectives(plan: Mapping[str, Any]) -> list[str]:
    lines = ['Sent between devices in a step, from each device']
    for row in plan['collectives']:
        where = 'in a loop' if row['in_loop'] else 'once'
        how = 'beside computation' if row['overlapped'] else 'waited for'
        lines.append(
            f'  {row["program"]:10} {row["kind"]:18} {row["runs"] * row["count"]:7,.0f} x '
            f'{size(row["runs"] * row["sent"]):>9}  {where}, {how}'
            + (', between slices' if row['between_slices'] else '')
        )
    return lines if len(lines) > 1 else [*lines, '  nothing']


def _time(plan: Mapping[str, Any], efficiency: float) -> list[str]:
    roof, cost = plan['roofline'], plan['cost']
    return [
        'Time of a step, seconds at the peak of each resource',
        f'  compute {roof["compute"]:.3g}, memory {roof["hbm"]:.3g}, links '
        f'{roof["ici"]:.3g} beside computation and {roof["exposed"]:.3g} waited for, '
        f'between slices {roof["dcn"]:.3g}',
        f'  {roof["binds"]} binds: at least {roof["least"]:.3g} s; '
        f'{roof["model_flops"] / 1e12:,.3g} TFLOP by the model, '
        f'{roof["executed_flops"] / 1e12:,.3g} with padding and recomputation',
        f'  at {efficiency:.0%} of every peak (assumed): {cost["step_seconds"]:.3g} s, '
        f'{cost["tokens_per_second"]:,.0f} tokens/s, MFU {cost["mfu"]:.1%}',
    ]


def _cost(plan: Mapping[str, Any], price: float, listed: bool) -> list[str]:
    cost, work = plan['cost'], plan['work']
    hours = cost['hours'] + cost['reference_hours']
    lines = [
        'Whole run',
        f'  {work["steps"]:,} steps: {cost["hours"]:.3g} hours'
        + (
            f', and {cost["reference_hours"]:.3g} for the reference before them'
            if cost['reference_hours']
            else ''
        ),
    ]
    if price:
        source = f'{PRICES_OF}; --price sets yours' if listed else '--price'
        lines.append(
            f'  {cost["dollars"]:,.0f} US dollars: {hours:.3g} hours x {plan["devices"]} '
            f'chips x {price:.2f} ({source})'
        )
    return lines
