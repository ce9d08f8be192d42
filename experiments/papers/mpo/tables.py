"""The paper's tables in shape, from what retention.py measured.

Command: python -m experiments.papers.mpo.tables
Reads results/retention/*.json; writes results/tables.csv (a row a run), seeds.csv (a row
a method and learning rate with several seeds), differences.csv (between two methods with
the same seeds), questions.csv (a row a run and task) and tables.png, and prints one line a
run.

Retention is a difference to the start on the same questions and texts, so its standard
errors are of paired differences. Runs of several seeds differ in the order of their data
and are measured on the same, so intervals over seeds hold nothing of those errors.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.papers.common import COLOURS, arguments, interval, panels, save, write_csv

COLOUR = {
    'dpo': COLOURS['DPO'],
    'ipo': COLOURS['other'],
    'mpo': '#8ecae6',
    'mpo+sft': '#4895c8',
    'mpo+sft+text': '#0b3c5d',
    'dpo+sft+text': COLOURS['IPM'],
    'sft': COLOURS['exact'],
}
SHOWN = {
    'gold': 'p(right option) on other tasks, change',
    'text_nll': 'NLL of held-out text, change (nats a token)',
    'kl_pairs': 'KL(start || policy), prompts of pairs (nats)',
    'kl_sft': 'KL(start || policy), SFT prompts (nats)',
}

OVER_SEEDS = ('accuracy', 'margin', 'questions', 'gold', 'text_nll', 'sft_nll')
OVER_SEEDS += ('kl_pairs', 'kl_sft')
CONTRASTS = (
    ('mpo', 'dpo'),
    ('mpo+sft+text', 'mpo'),
    ('mpo+sft+text', 'mpo+sft'),
    ('dpo+sft+text', 'dpo'),
    ('mpo+sft+text', 'dpo+sft+text'),
)


def paired(after: Sequence[float], before: Sequence[float]) -> tuple[float, float]:
    """Mean difference and its standard error."""
    x = np.array(after, np.float64) - np.array(before, np.float64)
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))


def gold_probability(record: Mapping[str, Any]) -> float:
    """Of the right option among those offered; of the text where there is one."""
    logps = np.array(record['logps'], np.float64)
    if len(logps) == 1:
        return float(np.exp(logps[0]))
    shares = np.exp(logps - logps.max())
    return float(shares[record['gold']] / shares.sum())


def task_rows(start: Mapping[str, Any], run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each task's accuracy after the run, and its change."""
    rows = []
    for task, records in run['questions'].items():
        before = start['questions'][task]
        change = paired([r['correct'] for r in records], [r['correct'] for r in before])
        gold = paired(*([gold_probability(r) for r in part] for part in (records, before)))
        rows.append(
            {
                'task': task,
                'questions': len(records),
                'start': float(np.mean([r['correct'] for r in before])),
                'accuracy': float(np.mean([r['correct'] for r in records])),
                'change': change[0],
                'change_error': change[1],
                'gold_probability_change': gold[0],
                'gold_probability_change_error': gold[1],
            }
        )
    return rows


def pair_measures(start: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, float]:
    """Of held-out pairs, in four ways that rank them.

    By log-ratios to the start, summed (the quantity of DPO and IPO) and a token, and by
    log-probs alone, summed and a token (the quantity of MPO).
    """
    before, after = (np.array(part['texts']['pairs']['logps']) for part in (start, run))
    change = after - before
    lengths = np.array(start['texts']['pairs']['tokens'], np.float64)
    margin = change[:, 0] - change[:, 1]
    right = (margin > 0) + 0.5 * (margin == 0)
    return {
        'accuracy': float(right.mean()),
        'accuracy_error': float(right.std(ddof=1) / math.sqrt(len(right))),
        'accuracy_a_token': _first_larger(change / lengths),
        'likelier_a_token': _first_larger(after / lengths),
        'likelier': _first_larger(after),
        'margin': float(margin.mean()),
        'margin_error': float(margin.std(ddof=1) / math.sqrt(len(margin))),
        'chosen_change': float(change[:, 0].mean()),
    }


def _first_larger(values_N2: np.ndarray) -> float:
    return float((values_N2[:, 0] > values_N2[:, 1]).mean())


def run_row(start: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """What a run learned and what it kept; `*_error` are standard errors."""
    row: dict[str, Any] = pair_measures(start, run)
    # LAMBADA is of the kind of text that one of the streams trains on
    tasks = [t for t in task_rows(start, run) if t['task'] != 'lambada']
    for name, key in (('questions', 'change'), ('gold', 'gold_probability_change')):
        errors = [t[f'{key}_error'] for t in tasks]
        row[name] = float(np.mean([t[key] for t in tasks]))
        row[f'{name}_error'] = float(np.linalg.norm(errors) / len(errors))
    for name, text in (('sft', 'sft'), ('text', 'pretrain')):
        row[f'{name}_nll'], row[f'{name}_nll_error'] = nll_change(start, run, text)
    for name in ('pairs', 'sft'):
        before, after = (
            [logps for (logps,) in part['texts'][f'own_{name}']['logps']]
            for part in (start, run)
        )
        row[f'kl_{name}'], row[f'kl_{name}_error'] = paired(before, after)
    row['seconds'] = run['wall_seconds']
    return row


def seed_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds with half-widths of their 95 % t-intervals, and standard errors.

    Runs are measured on the same questions and texts, so the standard error of a mean is at
    most the mean of theirs, which is what `*_error` holds.

    Args:
      rows: of runs, those of a method and learning rate in a row.
    """
    out = []
    for setting, mine in itertools.groupby(rows, lambda row: (row['method'], row['lr'])):
        group = list(mine)
        if len(group) < 2:
            continue
        found: dict[str, Any] = dict(zip(('method', 'lr'), setting, strict=True))
        found['seeds'] = len(group)
        for key in OVER_SEEDS:
            found[key], found[f'{key}_interval'] = interval(row[key] for row in group)
            found[f'{key}_error'] = float(np.mean([row[f'{key}_error'] for row in group]))
        out.append(found)
    return out


def difference_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of differences between two methods, with 95 % t-intervals.

    Runs of one seed see their data in the same order and are measured on the same, so a
    difference varies less than either.
    """
    found = {(row['method'], row['lr'], row['seed']): row for row in rows}
    out = []
    for (one, other), lr in itertools.product(CONTRASTS, sorted({r['lr'] for r in rows})):
        both = [
            (row, found[other, lr, seed])
            for (method, rate, seed), row in found.items()
            if (method, rate) == (one, lr) and (other, lr, seed) in found
        ]
        if len(both) < 2:
            continue
        row = {'method': one, 'minus': other, 'lr': lr, 'seeds': len(both)}
        for key in OVER_SEEDS:
            row[key], row[f'{key}_interval'] = interval(a[key] - b[key] for a, b in both)
        out.append(row)
    return out


def nll_change(
    start: Mapping[str, Any], run: Mapping[str, Any], name: str
) -> tuple[float, float]:
    """Mean change of the negative log-likelihood, nats a token, and its standard error."""
    tokens = np.array(start['texts'][name]['tokens'], np.float64)[:, 0]
    weights = len(tokens) / tokens.sum()
    after, before = (
        -weights * np.array(part['texts'][name]['logps'])[:, 0] for part in (run, start)
    )
    return paired(after, before)


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The start and all runs, by method, learning rate and seed."""
    start = json.loads((folder / 'start.json').read_text('utf-8'))
    runs = [
        json.loads(path.read_text('utf-8'))
        for path in sorted(folder.glob('*.json'))
        if path.name != 'start.json'
    ]
    order = list(COLOUR)
    for run in runs:
        if run['bench'] != start['bench']:
            raise ValueError(
                f'{run["method"]} {run["lr"]:g}: measured on other texts or questions than '
                'start.json; delete one of them'
            )
    runs.sort(key=lambda run: (order.index(run['method']), run['lr'], run['seed']))
    return start, runs


def draw(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """What is learned and kept at each rate: a point a run, a line through means."""
    titles = {'accuracy': 'accuracy on held-out pairs', **SHOWN}
    del titles['kl_sft']  # it goes as that on prompts of pairs does
    figure, axes = panels(len(titles))
    methods = list(dict.fromkeys(row['method'] for row in rows))
    rates = sorted({row['lr'] for row in rows})
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for i, method in enumerate(methods):
            mine = [row for row in rows if row['method'] == method]
            shift = 1.04 ** (i - len(methods) // 2)  # so that error bars lie side by side
            _points(ax, mine, key, shift, method)
            lrs = sorted({row['lr'] for row in mine})
            means = [np.mean([r[key] for r in mine if r['lr'] == lr]) for lr in lrs]
            ax.plot(np.array(lrs) * shift, means, color=COLOUR[method], linewidth=1)
        if not key.startswith('kl'):
            ax.axhline(0.5 if key == 'accuracy' else 0, color='black', linewidth=0.6)
        elif min(row[key] for row in rows) > 0:  # an estimate near 0 may be negative
            ax.set_yscale('log')
        ax.set(xscale='log', xlabel='learning rate')
        ax.set_xticks(rates, [f'{rate:g}' for rate in rates])
        ax.set_xticks([], minor=True)
        ax.set_title(title, loc='left', fontsize=9)
        if key.endswith('nll'):
            ax.set_yscale('symlog', linthresh=0.1)
    axes[1].legend(frameon=False, fontsize=7, loc='lower left')
    save(figure, file)


def _points(
    ax: Axes, rows: Sequence[Mapping[str, Any]], key: str, shift: float, label: str
) -> None:
    ax.errorbar(
        [row['lr'] * shift for row in rows],
        [row[key] for row in rows],
        [row[f'{key}_error'] for row in rows],
        color=COLOUR[label],
        marker='o',
        markersize=3.5,
        elinewidth=0.8,
        linestyle='none',
        label=label,
    )


def main() -> None:
    """Writes the tables and the figure."""
    args = arguments(__file__, __doc__)
    start, runs = read(args.out / 'retention')
    rows, tasks = [], []
    for run in runs:
        about = {key: run[key] for key in ('method', 'lr', 'seed')}
        rows.append(about | run_row(start, run))
        tasks += [about | row for row in task_rows(start, run)]
    write_csv(args.out / 'tables.csv', rows)
    write_csv(args.out / 'questions.csv', tasks)
    for name, found in (('seeds', seed_rows(rows)), ('differences', difference_rows(rows))):
        if found:
            write_csv(args.out / f'{name}.csv', found)
    draw(rows, args.out / 'tables.png')
    for row in rows:
        shown = [f'{key} {row[key]:.3f} ± {row[f"{key}_error"]:.3f}' for key in SHOWN]
        print(f'{row["method"]:13} {row["lr"]:g} {row["accuracy"]:.3f}', *shown)


if __name__ == '__main__':
    main()
