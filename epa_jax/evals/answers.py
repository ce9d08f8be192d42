"""How well a model answers the questions of a task, by log-likelihood."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from epa_jax.evals.continuations import Continuation, encode_continuations
from epa_jax.evals.scoring import ROWS, score
from epa_jax.evals.tasks import Task
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model said to N questions of M options at most.

    Attributes:
      task: the questions.
      logps: float32 [N, M], of each option, nats; NaN where there is none.
      greedy: bool [N]; greedy decoding gives the text. None where options are compared.
      cuts: options whose context was too long and cut on the left.
    """

    task: Task
    logps: np.ndarray
    greedy: np.ndarray | None
    cuts: int

    @property
    def gold(self) -> np.ndarray:
        """Int [N], index of the right option."""
        return np.array([question.gold for question in self.task.questions])

    @property
    def correct(self) -> np.ndarray:
        """Bool [N]: the right option is the likeliest; the only one is greedy."""
        if self.greedy is not None:
            return self.greedy
        return np.nanargmax(self.logps, axis=1) == self.gold

    @property
    def correct_per_character(self) -> np.ndarray:
        """Bool [N]: likewise by log-prob per character of the option."""
        if self.greedy is not None:
            return self.greedy
        length = np.ones(self.logps.shape)
        for row, question in zip(length, self.task.questions, strict=True):
            row[: len(question.options)] = [o.length for o in question.options]
        return np.nanargmax(self.logps / length, axis=1) == self.gold

    @property
    def gold_logps(self) -> np.ndarray:
        """float32 [N], log-prob of the right option, nats."""
        return np.take_along_axis(self.logps, self.gold[:, None], axis=1)[:, 0]

    @property
    def gold_probability(self) -> np.ndarray:
        """Float [N], probability of the right option among those offered."""
        shifted = self.logps - np.nanmax(self.logps, axis=1, keepdims=True)
        whole = np.nansum(np.exp(shifted), axis=1)
        return np.exp(self.gold_logps - np.nanmax(self.logps, axis=1)) / whole

    def summary(self) -> dict[str, Any]:
        """Means over questions; `*_error` are standard errors, None for one question.

        Choices: accuracy, accuracy_per_character (lm-evaluation-harness calls them acc
        and acc_norm) and gold_probability. Completions: accuracy, that greedy decoding
        gives all tokens, and perplexity, exp(- mean log-prob of a continuation).
        """
        values = {'accuracy': self.correct}
        if self.task.is_choice:
            values['accuracy_per_character'] = self.correct_per_character
            values['gold_probability'] = self.gold_probability
        out: dict[str, Any] = {
            'questions': len(self.task.questions),
            'in_file': self.task.in_file,
            'cut_options': self.cuts,
        }
        for name, each in values.items():
            out[name], out[f'{name}_error'] = _mean(each)
        if not self.task.is_choice:
            mean = -self.gold_logps.mean(dtype=np.float64)
            # beyond float64 it is infinite; JSON has no such number
            out['perplexity'] = math.exp(mean) if mean < 700 else None
        return out

    def records(self) -> list[dict[str, Any]]:
        """One record a question, for JSON."""
        return [
            {
                'origin': question.origin,
                'gold': question.gold,
                'logps': [float(x) for x in self.logps[i, : len(question.options)]],
                'correct': bool(self.correct[i]),
            }
            for i, question in enumerate(self.task.questions)
        ]


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean and standard error."""
    x = values.astype(np.float64)
    error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None
    return float(x.mean()), error


def answer(
    task: Task,
    params: Params,
    spec: ModelSpec,
    compute: Compute,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> Answers:
    """Scores all options of a task; options behind one context share its tokens.

    Args:
      task: the questions.
      params: as `transformer.abstract_params` describes them.
      spec: architecture.
      compute: dtype and back end.
      tokenizer: of the model; no chat template is applied.
      mesh: where the parameters live; None is one device.
      rows: as for `scoring.score`.

    Raises:
      ConfigError: an option without tokens, or longer than the model reads.
      ScoreError: a model whose log-probs are NaN.
    """
    texts = [(o.context, o.continuation) for q in task.questions for o in q.options]
    encoded, cuts = encode_continuations(tokenizer, texts, spec.max_positions)
    places = [(n, m) for n, q in enumerate(task.questions) for m in range(len(q.options))]
    groups = _share_contexts(encoded, [n for n, _ in places])
    found = score(
        params,
        spec,
        compute,
        [encoded[members[0]].context for members in groups],
        [[encoded[i].continuation for i in members] for members in groups],
        greedy=not task.is_choice,
        mesh=mesh,
        rows=rows,
    )
    logps = _spread(found.logps, groups, places)
    greedy = None if found.greedy is None else _spread(found.greedy, groups, places)[:, 0]
    return Answers(task, logps, greedy, cuts)


def _share_contexts(
    encoded: Sequence[Continuation], questions: Sequence[int]
) -> list[list[int]]:
    """Indices of pairs of one question with one context, in the order they come."""
    groups: dict[tuple[int, bytes], list[int]] = {}
    for i, (pair, question) in enumerate(zip(encoded, questions, strict=True)):
        groups.setdefault((question, pair.context.tobytes()), []).append(i)
    return list(groups.values())


def _spread(
    found_GK: np.ndarray, groups: list[list[int]], places: list[tuple[int, int]]
) -> np.ndarray:
    """Values of groups by question and option, [N, M]; NaN (False) where there is none."""
    questions, options = (1 + max(axis) for axis in zip(*places, strict=True))
    empty = False if found_GK.dtype == bool else np.nan
    out = np.full((questions, options), empty, found_GK.dtype)
    for values, members in zip(found_GK, groups, strict=True):
        for value, i in zip(values, members, strict=False):
            out[places[i]] = value
    return out
