"""What a run is about to train on, counted before it starts."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from epa_jax.data.load import Datasets
from epa_jax.data.packing import plan
from epa_jax.data.pipeline import Pipeline
from epa_jax.types import Role, TokenExample, TokenGroup


def data_report(
    datasets: Datasets, data: Pipeline, total_steps: int, matrix_params: int
) -> dict[str, Any]:
    """Counts of examples, tokens, padding and compute.

    Args:
      datasets: what was read and kept.
      data: the run's batches.
      total_steps: optimiser steps.
      matrix_params: parameters that each token is multiplied with; a training step needs
        about 6 floating-point operations for each of them and token.

    Returns:
      JSON values, for the run folder and `render`.
    """
    groups = [data.group(visit) for visit in data.visits.first(total_steps)]
    lengths = [group.num_tokens for group in groups]
    step_tokens = float(np.mean(lengths)) * data.visits.prompts
    return {
        'read': {r.source: r.read for r in datasets.read},
        'skipped_lines': {r.source: dict(r.skipped) for r in datasets.read if r.skipped},
        'train': _examples(datasets.train) | _fate(datasets.tokenised),
        'held_out': _examples(datasets.held_out) | _fate(datasets.held_out_tokenised),
        'visits': {
            'steps': total_steps,
            'prompts_per_step': data.visits.prompts,
            'epochs': total_steps * data.visits.prompts / len(datasets.train),
            'tokens_per_prompt': _spread(lengths),
            'responses': _roles(groups),
        },
        'rows': _rows(groups, data),
        'compute': {
            'tokens_per_step': step_tokens,
            'flops_per_step': 6.0 * matrix_params * step_tokens,
        },
    }


def _examples(examples: Sequence[TokenExample]) -> dict[str, Any]:
    prompts = collections.Counter(example.prompt_key for example in examples)
    return {
        'examples': len(examples),
        'duplicate_prompts': len(examples) - len(prompts),
        'with_identical_responses': sum(_has_identical(e) for e in examples),
        'with_tied_best': sum(_has_tied_best(e) for e in examples),
        'prompt_tokens': _spread([len(e.prompt_ids) for e in examples]),
        'response_tokens': _spread([len(r) for e in examples for r in e.response_ids]),
    }


def _fate(report: Any) -> dict[str, Any]:
    return {
        'dropped': dict(report.dropped),
        'dropped_responses': dict(report.dropped_responses),
        'truncated_prompts': report.truncated_prompts,
        'truncated_responses_without_eos': report.truncated_responses,
    }


def _has_identical(example: TokenExample) -> bool:
    return len({ids.tobytes() for ids in example.response_ids}) < len(example.response_ids)


def _has_tied_best(example: TokenExample) -> bool:
    best = example.ratings[example.roles == Role.CHOSEN]
    others = example.ratings[example.roles == Role.REJECTED]
    return bool((others == best).any())


def _spread(values: Sequence[int]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high, most = np.percentile(values, [0, 50, 95, 100])
    return {
        'min': float(low),
        'median': float(median),
        'p95': float(high),
        'max': float(most),
        'total': float(np.sum(values)),
    }


def _roles(groups: Iterable[TokenGroup]) -> dict[str, int]:
    counts = collections.Counter(int(r) for group in groups for r in group.roles)
    return {Role(role).name.lower(): count for role, count in sorted(counts.items())}


def _rows(groups: Sequence[TokenGroup], data: Pipeline) -> dict[str, Any]:
    """Fill of the packed rows, over up to 50 steps' worth of prompts."""
    size, layout = data.visits.prompts, data.layout
    starts = range(0, min(len(groups), 50 * size) - size + 1, size) or [0]
    rows = micro_batches = tokens = 0
    for start in starts:
        lengths = [g.num_tokens for g in groups[start : start + size]]
        used = len(plan(lengths, layout))
        micro_batches += -(-used // layout.rows)
        rows += used
        tokens += sum(lengths)
    cells = micro_batches * layout.rows * layout.row_length
    return {
        'row_length': layout.row_length,
        'rows_per_micro_batch': layout.rows,
        'micro_batches_per_step': micro_batches / len(starts),
        'padding': 1 - tokens / cells,
    }


def render(report: Mapping[str, Any]) -> str:
    """The report as text, a fact a line."""
    lines = ['data report']
    for source, count in report['read'].items():
        skipped = report['skipped_lines'].get(source, {})
        lines.append(f'  read       {count} examples from {source}')
        lines += [f'  skipped    {n} lines: {why}' for why, n in skipped.items()]
    for part in ('train', 'held_out'):
        lines += _render_part(part, report[part])
    visits, rows, compute = report['visits'], report['rows'], report['compute']
    per_prompt = visits['tokens_per_prompt']
    lines += [
        f'  steps      {visits["steps"]} of {visits["prompts_per_step"]} prompts, '
        f'{visits["epochs"]:.2f} epochs; responses: {visits["responses"]}',
        f'  prompt with its responses: median {per_prompt["median"]:.0f} tokens, '
        f'longest {per_prompt["max"]:.0f}',
        f'  rows       {rows["row_length"]} tokens, {rows["padding"]:.1%} padding, '
        f'{rows["micro_batches_per_step"]:.1f} micro-batches of '
        f'{rows["rows_per_micro_batch"]} a step',
        f'  compute    {compute["tokens_per_step"]:,.0f} tokens and '
        f'{compute["flops_per_step"] / 1e12:.3g} TFLOP a step',
    ]
    return '\n'.join(lines)


def _render_part(name: str, part: Mapping[str, Any]) -> list[str]:
    if not part['examples']:
        return []
    lines = [f'  {name:10} {part["examples"]} examples']
    facts = {
        'duplicate prompts': part['duplicate_prompts'],
        'with identical responses': part['with_identical_responses'],
        'with a tie for the best rating': part['with_tied_best'],
        'prompts truncated on the left': part['truncated_prompts'],
        'responses truncated, EOS lost': part['truncated_responses_without_eos'],
    }
    facts |= {f'examples dropped: {why}': n for why, n in part['dropped'].items()}
    facts |= {
        f'responses dropped: {why}': n for why, n in part['dropped_responses'].items()
    }
    lines += [f'{"":13}{count} {fact}' for fact, count in facts.items() if count]
    prompt, response = part['prompt_tokens'], part['response_tokens']
    lines.append(
        f'{"":13}tokens (median / 95 % / max): prompt {prompt["median"]:.0f} / '
        f'{prompt["p95"]:.0f} / {prompt["max"]:.0f}, response {response["median"]:.0f} / '
        f'{response["p95"]:.0f} / {response["max"]:.0f}'
    )
    return lines
