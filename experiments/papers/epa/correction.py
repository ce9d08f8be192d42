"""The log q correction at the scale of a language model: how many samples are left.

Claim: dividing by the probability of a sampled negative, which removes EPA's bias in an
  enumerable world, leaves about one response per prompt for a language model.
Command: python -m experiments.papers.epa.correction --model ../shared/data/stories260k
Model: a pretrained LLaMA (any Hugging Face folder of stories).
Data: 64 openings of 12 tokens, 16 continuations each of at most 4 to 64 tokens, sampled
  from the model, whose exact log-probs are log q.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.papers.common import results_of, write_csv
from experiments.papers.epa.storyteller import Storyteller, load_teller

LENGTHS = (4, 8, 16, 32, 64)


def effective_samples(log_q: np.ndarray) -> np.ndarray:
    """1 / sum of squared weights, weights proportional to 1 / q; [..., K] -> [...]."""
    weights = np.exp(log_q.min(axis=-1, keepdims=True) - log_q)
    weights /= weights.sum(axis=-1, keepdims=True)
    return 1 / np.sum(weights**2, axis=-1)


def measure(
    teller: Storyteller, lengths: Sequence[int], openings: int, each: int
) -> list[dict[str, float]]:
    """Effective samples of `each`, at every length of the continuations."""
    keys = jax.random.split(jax.random.key(0), 2)
    starts = teller.openings(openings, keys[0])
    answers = teller.continuations(teller.params, starts, each, keys[1])
    rows = []
    for length in lengths:
        log_q = teller.logps(starts, [[y[:length] for y in row] for row in answers])
        found = effective_samples(log_q)
        rows.append(
            {
                'length': length,
                'samples': each,
                'effective': found.mean(),
                'effective_half_interval': 1.96 * found.std(ddof=1) / np.sqrt(len(found)),
                'std_of_log_q': log_q.std(axis=1, ddof=1).mean(),
            }
        )
        print(', '.join(f'{key} {value:.3g}' for key, value in rows[-1].items()))
    return rows


def main() -> None:
    """Writes results/correction.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', required=True, help='a Hugging Face folder')
    parser.add_argument('--out', type=Path, default=results_of(__file__))
    args = parser.parse_args()
    teller = load_teller(args.model, len)  # no reward is asked for
    write_csv(args.out / 'correction.csv', measure(teller, LENGTHS, 64, 16))


if __name__ == '__main__':
    main()
