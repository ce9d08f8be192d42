"""The table that the quickstart ends with."""

import math
from collections.abc import Sequence

import numpy as np

from epa_jax.world.measure import Estimate, Outcome

HEADINGS = (
    ('', 'held-out', 'margin', 'Pearson', 'slope-1', 'its', 'KL to the', 'true'),
    ('policy', 'accuracy', '', '', 'error', 'root', 'reference', 'reward'),
)


def lines(outcomes: Sequence[Outcome]) -> list[str]:
    """One row a policy, in 80 columns or little more; ± is one standard error.

    Not a table of rich, which cuts off digits where the terminal is narrower.
    """
    rows = [*HEADINGS, *(_cells(outcome) for outcome in outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        '  '.join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    ]
    texts.insert(len(HEADINGS), '─' * len(texts[0]))
    return texts


def _cells(outcome: Outcome) -> tuple[str, ...]:
    line = outcome.linearity
    return (
        outcome.name,
        f'{outcome.accuracy:.3f}',
        f'{outcome.margin:.3f}',
        '-' if math.isnan(line.mean_pearson) else f'{line.mean_pearson:.3f}',
        f'{line.mean_slope1_error:.3f}',
        f'{line.mean_slope1_root:.3f}',
        _with_error(outcome.kl),
        _with_error(outcome.reward),
    )


def _with_error(estimate: Estimate) -> str:
    return f'{estimate.mean:.2f} ± {estimate.error:.2f}'


def as_record(outcome: Outcome) -> dict[str, float | str | None]:
    """The same numbers for results.json."""
    line = outcome.linearity
    pearson = line.mean_pearson
    return {
        'policy': outcome.name,
        'accuracy': outcome.accuracy,
        'margin': outcome.margin,
        'pearson': None if math.isnan(pearson) else pearson,
        'slope1_error': line.mean_slope1_error,
        'slope1_root': line.mean_slope1_root,
        'kl': outcome.kl.mean,
        'kl_standard_error': outcome.kl.error,
        'reward': outcome.reward.mean,
        'reward_standard_error': outcome.reward.error,
    }


def agreement(gaps_P: np.ndarray) -> float:
    """Accuracy of the true reward itself, which no policy can expect to beat.

    Args:
      gaps_P: true reward of the preferred response less that of the other, by pair.
    """
    return float(np.mean((gaps_P > 0) + 0.5 * (gaps_P == 0)))


def notes(
    gaps_P: np.ndarray, own: int, off_topic: int, fresh: int, beta: float
) -> list[str]:
    """What the columns are, a paragraph each.

    Args:
      gaps_P: of the held-out pairs, as for `agreement`.
      own: reference samples to each prompt behind the linearity.
      off_topic: responses to other prompts besides those.
      fresh: samples of each policy to each prompt.
      beta: scale of r_theta.
    """
    pairs = len(gaps_P)
    return [
        f'Accuracy, margin: {pairs} held-out pairs with labels drawn from Bradley-Terry; '
        f'the true reward itself has accuracy {agreement(gaps_P):.3f}. A tie counts one '
        f'half. Standard error of an accuracy: at most {0.5 / math.sqrt(pairs):.3f}.',
        f'Pearson, slope-1 error: r_theta = {beta} log(policy / reference) against the '
        f'true reward, on {own} samples of the reference and {off_topic} off-topic '
        'responses to each held-out prompt. Means over prompts, of the mean square and of '
        'its root.',
        f'KL (nats), true reward: {fresh} fresh samples to each held-out prompt, ± one '
        'standard error.',
    ]
