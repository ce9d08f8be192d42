"""Floating-point operations that a step needs, counted from shapes.

A product of [m, k] and [k, n] costs 2 m k n. Backward costs twice the forward pass. What
is computed again (rematerialisation, the head's second pass) or on padding does not count.
Norms, softmax, rotary embeddings and the optimiser are left out: below 2 % here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.task import Group
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import num_params

TRAIN_PASSES = 3  # one forward, two backward


class Work(NamedTuple):
    """What a step's rows hold.

    Attributes:
      tokens: that go through the layers.
      scored: that meet the vocabulary.
      seen: pairs of a token and one that it attends to.
    """

    tokens: int
    scored: int
    seen: int


def shared(groups: Sequence[Group]) -> Work:
    """Every prompt once, followed by its responses."""
    tokens = scored = seen = 0
    for group in groups:
        prompt = len(group.prompt)
        tokens += prompt
        seen += _causal(prompt)
        for response in group.responses:
            tokens += len(response)
            scored += len(response)
            seen += _causal(prompt + len(response)) - _causal(prompt)
    return Work(tokens, scored, seen)


def repeated(groups: Sequence[Group]) -> Work:
    """The prompt again before each response, without padding."""
    alone = [Group(g.prompt, [r]) for g in groups for r in g.responses]
    return shared(alone)


def _causal(length: int) -> int:
    return length * (length + 1) // 2


def forward(spec: ModelSpec, work: Work) -> float:
    """Operations of one forward pass."""
    embedding = spec.vocab_size * spec.d_model
    matrices = num_params(spec) - embedding * (1 if spec.tie_embeddings else 2)
    matrices -= spec.d_model * (2 * spec.n_layers + 1)  # norms
    attention = 2 * 2 * spec.n_layers * spec.n_heads * spec.head_dim * work.seen
    return 2.0 * matrices * work.tokens + attention + 2.0 * embedding * work.scored


def of_groups(spec: ModelSpec, groups: Sequence[Group]) -> float:
    """Operations of a training step with shared prompts and a cached reference."""
    return TRAIN_PASSES * forward(spec, shared(groups))


def of_pairs(spec: ModelSpec, groups: Sequence[Group], reference: bool) -> float:
    """Operations of a step that repeats the prompt, head at responses alone.

    Args:
      spec: architecture.
      groups: prompts with responses.
      reference: whether the reference runs in the step.
    """
    return (TRAIN_PASSES + reference) * forward(spec, repeated(groups))
