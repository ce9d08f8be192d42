"""Which negatives a prompt meets: a pure function of seed, draw and index."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from epa_jax.types import Role, TokenExample, TokenGroup

TRIES = 64  # random draws before all candidates are listed

SOURCES = {
    'chosen': (Role.CHOSEN,),
    'rejected': (Role.REJECTED,),
    'any': (Role.CHOSEN, Role.REJECTED),
}


class NegativesError(ValueError):
    """A data set that cannot provide the negatives asked for."""


@dataclasses.dataclass(frozen=True)
class NegativeRule:
    """How negatives are drawn.

    Attributes:
      seed: the run's seed.
      n_strong: most worse responses of the same prompt.
      n_weak: responses of other prompts.
      weak_source: key of `SOURCES`.
    """

    seed: int
    n_strong: int
    n_weak: int
    weak_source: str

    @property
    def responses(self) -> int:
        """Columns of the response table."""
        return 1 + self.n_strong + self.n_weak


def make_group(
    examples: Sequence[TokenExample], index: int, draw: int, rule: NegativeRule
) -> TokenGroup:
    """The chosen response of an example with its strong and weak negatives.

    Strong negatives are drawn from the rejected responses; those tied with the chosen
    in rating, or identical to it, are no negatives and left out. Weak negatives come
    from as many different other prompts, never from a duplicate of this prompt, and
    never repeat a response that the group already holds.

    Args:
      examples: the training set.
      index: which example.
      draw: number of the draw, the epoch when negatives are drawn anew in each.
      rule: how many, and from where.

    Raises:
      NegativesError: too few other prompts.
    """
    example = examples[index]
    rng = np.random.default_rng([rule.seed, draw, index])
    (chosen,) = np.flatnonzero(example.roles == Role.CHOSEN)
    strong = strong_candidates(example)
    if len(strong) > rule.n_strong:
        strong = sorted(rng.choice(strong, rule.n_strong, replace=False).tolist())
    own = [int(chosen), *strong]
    responses = [example.response_ids[k] for k in own]
    weak = _draw_weak(examples, index, responses, rng, rule)
    roles = [Role.CHOSEN] + [Role.REJECTED] * len(strong) + [Role.WEAK] * len(weak)
    unknown = np.full(len(weak), np.nan, np.float32)
    return TokenGroup(
        key=draw * len(examples) + index,
        prompt_ids=example.prompt_ids,
        response_ids=(*responses, *weak),
        roles=np.array(roles, np.int8),
        ratings=np.concatenate([example.ratings[own], unknown]),
    )


def strong_candidates(example: TokenExample) -> list[int]:
    """Rejected responses that are neither identical to the chosen one nor tied with it."""
    (chosen,) = np.flatnonzero(example.roles == Role.CHOSEN)
    best, rating = example.response_ids[chosen], example.ratings[chosen]
    return [
        int(k)
        for k in np.flatnonzero(example.roles == Role.REJECTED)
        if not np.array_equal(example.response_ids[k], best)
        and example.ratings[k] != rating  # NaN, unknown, ties with nothing
    ]


def _draw_weak(
    examples: Sequence[TokenExample],
    index: int,
    held: Sequence[np.ndarray],
    rng: np.random.Generator,
    rule: NegativeRule,
) -> list[np.ndarray]:
    prompts = {examples[index].prompt_key}
    texts = {ids.tobytes() for ids in held}
    out: list[np.ndarray] = []
    while len(out) < rule.n_weak:
        other, ids = _draw_one(examples, prompts, texts, rng, rule)
        prompts.add(other.prompt_key)
        texts.add(ids.tobytes())
        out.append(ids)
    return out


def _draw_one(
    examples: Sequence[TokenExample],
    prompts: set[bytes],
    texts: set[bytes],
    rng: np.random.Generator,
    rule: NegativeRule,
) -> tuple[TokenExample, np.ndarray]:
    """A response of another prompt: by trial, or from a list when few are left."""
    for _ in range(TRIES):
        other = examples[int(rng.integers(len(examples)))]
        candidates = _candidates(other, prompts, texts, rule)
        if candidates:
            return other, candidates[int(rng.integers(len(candidates)))]
    remaining = [
        (other, ids)
        for other in examples
        for ids in _candidates(other, prompts, texts, rule)
    ]
    if not remaining:
        raise NegativesError(
            f'data.n_weak={rule.n_weak}: no response of another prompt is left after '
            f'{len(prompts) - 1}; the data have too few different prompts with '
            f'{rule.weak_source} responses'
        )
    return remaining[int(rng.integers(len(remaining)))]


def _candidates(
    other: TokenExample, prompts: set[bytes], texts: set[bytes], rule: NegativeRule
) -> list[np.ndarray]:
    if other.prompt_key in prompts:
        return []
    roles = SOURCES[rule.weak_source]
    return [
        ids
        for ids, role in zip(other.response_ids, other.roles, strict=True)
        if role in roles and ids.tobytes() not in texts
    ]
