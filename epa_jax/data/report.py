"""What a run is about to train on, counted before it starts."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from epa_jax.data.examples import ReadReport
from epa_jax.data.load import Datasets
from epa_jax.data.mixture import Mixture
from epa_jax.data.packing import cells, cheapest
from epa_jax.data.pipeline import Pipeline
from epa_jax.data.streams import Stream
from epa_jax.data.tokenise import TokeniseReport
from epa_jax.types import Role, TokenExample, TokenGroup

SAMPLE = 50  # steps whose packing is tried out


def data_report(
    datasets: Datasets,
    mixture: Mixture,
    total_steps: int,
    flops_per_token: float,
    streams: Sequence[Stream] = (),
) -> dict[str, Any]:
    """Counts of examples, tokens, padding and compute.

    Args:
      datasets: what was read and kept.
      mixture: the run's batches.
      total_steps: optimiser steps.
      flops_per_token: floating-point operations of training on a token.
      streams: text beside the preference data.

    Returns:
      JSON values, for the run folder and `render`.
    """
    data = mixture.preference
    groups = _visited(data, total_steps)
    lengths = [group.num_tokens for group in groups]
    step_tokens = float(np.mean(lengths)) * data.visits.prompts
    texts = {stream.name: _stream(stream, total_steps) for stream in streams}
    all_tokens = step_tokens + sum(text['tokens_per_step'] for text in texts.values())
    reads = [('data', datasets.read), *((stream.name, stream.read) for stream in streams)]
    return {
        'read': [_source(group, read) for group, found in reads for read in found],
        'train': _examples(datasets.train) | _fate(datasets.tokenised),
        'held_out': _examples(datasets.held_out) | _fate(datasets.held_out_tokenised),
        'streams': texts,
        'visits': {
            'steps': total_steps,
            'prompts_per_step': data.visits.prompts,
            'epochs': total_steps * data.visits.prompts / len(datasets.train),
            'tokens_per_prompt': _spread(lengths),
            'responses': _roles(groups),
        },
        'rows': _rows(data, lengths[: SAMPLE * data.visits.prompts]),
        'compute': {
            'tokens_per_step': all_tokens,
            'flops_per_step': flops_per_token * all_tokens,
        },
    }


def _source(group: str, read: ReadReport) -> dict[str, Any]:
    """What a source held; several groups of keys may name one source."""
    return {
        'source': read.source,
        'group': group,
        'examples': read.read,
        'skipped_lines': _reasons(read.skipped, read.first_skipped),
    }


def _stream(stream: Stream, total_steps: int) -> dict[str, Any]:
    """Counts of a stream's sequences and tokens."""
    lengths = [len(e.prompt_ids) + len(e.response_ids[0]) for e in stream.train]
    return {
        'sequences': len(stream.train),
        'held_out': {'sequences': len(stream.held_out)} | _fate(stream.held_out_tokenised),
        'tokens': _spread(lengths),
        'weight': stream.weight,
        'sequences_per_step': stream.sequences,
        'tokens_per_step': float(np.mean(lengths)) * stream.sequences,
        'epochs': total_steps * stream.sequences / len(stream.train),
    } | _fate(stream.tokenised)


def _visited(data: Pipeline, total_steps: int) -> list[TokenGroup]:
    """The group of every visit of the run, in order; repeated visits share one."""
    dataset = data.visits.dataset()
    order = [dataset[i] for i in range(total_steps * data.visits.prompts)]
    groups = {visit: data.group(visit) for visit in set(order)}
    return [groups[visit] for visit in order]


def _reasons(counts: Mapping[str, int], first: Mapping[str, str]) -> dict[str, Any]:
    return {why: {'count': n, 'first': first[why]} for why, n in counts.items()}


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


def _fate(report: TokeniseReport) -> dict[str, Any]:
    return {
        'dropped': _reasons(report.dropped, report.first_dropped),
        'dropped_responses': dict(report.dropped_responses),
        'truncated_prompts': report.truncated_prompts,
        'truncated_responses_without_eos': report.truncated_responses,
        'responses_with_eos_inside': report.eos_inside,
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


def _rows(data: Pipeline, lengths: Sequence[int]) -> dict[str, Any]:
    """Fill of the packed rows of the steps that visit groups of these lengths."""
    prompts, rows = data.visits.prompts, data.layout.rows
    starts = range(0, len(lengths), prompts)
    steps = [lengths[start : start + prompts] for start in starts]
    layouts = [cheapest(step, data.layouts) for step in steps]
    computed = [cells(step, layout) for step, layout in zip(steps, layouts, strict=True)]
    micro_batches = [
        count / (rows * layout.row_length)
        for count, layout in zip(computed, layouts, strict=True)
    ]
    return {
        'row_lengths': [layout.row_length for layout in data.layouts],
        'rows_per_micro_batch': rows,
        'micro_batches_per_step': sum(micro_batches) / len(steps),
        'padding': 1 - sum(lengths) / sum(computed),
    }


def render(report: Mapping[str, Any]) -> str:
    """The report as text, a fact a line."""
    lines = ['data report']
    for read in report['read']:
        use = '' if read['group'] == 'data' else f' ({read["group"]})'
        lines.append(f'  read       {read["examples"]} examples from {read["source"]}{use}')
        lines += [
            f'  skipped    {skip["count"]} lines: {why} (first {skip["first"]})'
            for why, skip in read['skipped_lines'].items()
        ]
    for part in ('train', 'held_out'):
        lines += _render_part(part, report[part])
    for name, text in report['streams'].items():
        lines += _render_stream(name, text)
    visits, rows, compute = report['visits'], report['rows'], report['compute']
    per_prompt = visits['tokens_per_prompt']
    lines += [
        f'  steps      {visits["steps"]} of {visits["prompts_per_step"]} prompts, '
        f'{visits["epochs"]:.2f} epochs; responses: {visits["responses"]}',
        f'  prompt with its responses: median {per_prompt["median"]:.0f} tokens, '
        f'longest {per_prompt["max"]:.0f}',
        f'  rows       {_one_of(rows["row_lengths"])} tokens, {rows["padding"]:.1%} '
        f'padding, {rows["micro_batches_per_step"]:.1f} micro-batches of '
        f'{rows["rows_per_micro_batch"]} a step',
        f'  compute    {compute["tokens_per_step"]:,.0f} tokens and '
        f'{compute["flops_per_step"] / 1e12:.3g} TFLOP a step',
    ]
    return '\n'.join(lines)


def _one_of(numbers: Sequence[int]) -> str:
    *others, last = map(str, numbers)
    return f'{", ".join(others)} or {last}' if others else last


def _render_stream(name: str, text: Mapping[str, Any]) -> list[str]:
    lines = [
        f'  {name:10} {text["sequences"]} sequences, median {text["tokens"]["median"]:.0f} '
        f'tokens, {text["sequences_per_step"]} a step ({text["epochs"]:.2f} epochs), '
        f'weight {text["weight"]:g}; {text["held_out"]["sequences"]} held out'
    ]
    for part, which in ((text, ''), (text['held_out'], 'held-out ')):
        lines += [
            f'{"":13}{drop["count"]} {which}examples dropped: {why} (first {drop["first"]})'
            for why, drop in part['dropped'].items()
        ]
        for what, key in (
            ('prompts truncated on the left', 'truncated_prompts'),
            ('responses truncated, EOS lost', 'truncated_responses_without_eos'),
        ):
            lines += [f'{"":13}{part[key]} {which}{what}'] if part[key] else []
    return lines


def _render_part(name: str, part: Mapping[str, Any]) -> list[str]:
    lines = [f'  {name:10} {part["examples"]} examples']
    facts = {
        'duplicate prompts': part['duplicate_prompts'],
        'with identical responses': part['with_identical_responses'],
        'with a tie for the best rating': part['with_tied_best'],
        'prompts truncated on the left': part['truncated_prompts'],
        'responses truncated, EOS lost': part['truncated_responses_without_eos'],
        'responses with an EOS before their end': part['responses_with_eos_inside'],
    }
    facts |= {
        f'examples dropped: {why} (first {drop["first"]})': drop['count']
        for why, drop in part['dropped'].items()
    }
    facts |= {
        f'responses dropped: {why}': n for why, n in part['dropped_responses'].items()
    }
    lines += [f'{"":13}{count} {fact}' for fact, count in facts.items() if count]
    prompt, response = part['prompt_tokens'], part['response_tokens']
    if not part['examples']:
        return lines
    lines.append(
        f'{"":13}tokens (median / 95 % / max): prompt {prompt["median"]:.0f} / '
        f'{prompt["p95"]:.0f} / {prompt["max"]:.0f}, response {response["median"]:.0f} / '
        f'{response["p95"]:.0f} / {response["max"]:.0f}'
    )
    return lines
