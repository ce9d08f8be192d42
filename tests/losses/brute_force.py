"""Random tables, and what the twins of the losses are made of: float64 loops only."""

import math
from typing import NamedTuple

import numpy as np

from epa_jax.types import ResponseTable, Role


def random_table(
    seed: int,
    prompts: int = 6,
    responses: int = 5,
    scale: float = 20.0,
    log_q: bool = False,
) -> ResponseTable:
    """A table with every role; each prompt has one CHOSEN and one REJECTED at least.

    The chosen response has the highest rating of its prompt, sometimes not alone; WEAK
    and PAD have none. Log-ratios have a standard deviation of about 1.4 times `scale`.
    """
    rng = np.random.default_rng(seed)
    shape = (prompts, responses)
    roles = rng.choice([Role.PAD, Role.REJECTED, Role.WEAK], shape).astype(np.int8)
    for n in range(prompts):
        chosen, rejected = rng.choice(responses, 2, replace=False)
        roles[n, chosen], roles[n, rejected] = Role.CHOSEN, Role.REJECTED
    best = rng.integers(2, 11, (prompts, 1))
    ratings = np.where(roles == Role.CHOSEN, best, rng.integers(2, best + 1, shape)) / 2
    return ResponseTable(
        logps=-np.abs(rng.normal(50, scale, shape)).astype(np.float32),
        ref_logps=-np.abs(rng.normal(50, scale, shape)).astype(np.float32),
        lengths=rng.integers(1, 30, shape).astype(np.int32),
        roles=roles,
        ratings=np.where(is_own(roles), ratings, np.nan).astype(np.float32),
        log_q=rng.normal(-3, 2, shape).astype(np.float32) if log_q else None,
        log_collision=-rng.exponential(1, shape).astype(np.float32),
    )


def pair_table(gap, roles=(Role.CHOSEN, Role.REJECTED)):
    """One prompt of two responses whose log-ratios differ by `gap`."""
    return ResponseTable(
        logps=np.array([[gap - 7.0, -7.0]], np.float32),
        ref_logps=np.full((1, 2), -7.0, np.float32),
        lengths=np.ones((1, 2), np.int32),
        roles=np.array([roles], np.int8),
    )


def is_own(roles: np.ndarray) -> np.ndarray:
    return (roles == Role.CHOSEN) | (roles == Role.REJECTED)


def forget_ratings(table: ResponseTable, prompts: slice = slice(None)) -> ResponseTable:
    """The table with NaN for these prompts' ratings, as pairs without scores have."""
    ratings = table.ratings.copy()
    ratings[prompts] = np.nan
    return table.replace(ratings=ratings)


def forget_one_rating(table: ResponseTable, n: int) -> ResponseTable:
    """The table with NaN for the rating of prompt n's first strong negative."""
    ratings = table.ratings.copy()
    ratings[n, list(table.roles[n]).index(Role.REJECTED)] = np.nan
    return table.replace(ratings=ratings)


class Response(NamedTuple):
    """One entry of a table, in Python floats."""

    p: float
    ref: float
    length: int
    role: Role
    rating: float
    log_q: float
    log_collision: float

    @property
    def ratio(self) -> float:
        return self.p - self.ref

    @property
    def mean_p(self) -> float:
        return self.p / self.length

    @property
    def mean_ratio(self) -> float:
        return self.ratio / self.length


Prompt = list[Response]


def read(table: ResponseTable) -> list[Prompt]:
    """The responses of each prompt, without PAD; none for a prompt without CHOSEN."""

    def entry(array, n, k, absent=math.nan):
        return absent if array is None else float(array[n, k])

    prompts = []
    for n, roles in enumerate(np.asarray(table.roles)):
        if Role.CHOSEN not in roles:
            prompts.append([])
            continue
        prompts.append(
            [
                Response(
                    p=entry(table.logps, n, k),
                    ref=entry(table.ref_logps, n, k),
                    length=int(table.lengths[n, k]),
                    role=Role(role),
                    rating=entry(table.ratings, n, k),
                    log_q=entry(table.log_q, n, k, 0.0),
                    log_collision=entry(table.log_collision, n, k),
                )
                for k, role in enumerate(roles)
                if role != Role.PAD
            ]
        )
    return prompts


def having(prompt: Prompt, *roles: Role) -> Prompt:
    return [y for y in prompt if y.role in roles]


def own(prompt: Prompt) -> Prompt:
    return having(prompt, Role.CHOSEN, Role.REJECTED)


def all_rated(prompt: Prompt) -> bool:
    return not any(math.isnan(y.rating) for y in own(prompt))


def of_role(table, n, role):
    """Log-ratios, in float64, of prompt n's responses of one role."""
    return [y.ratio for y in having(read(table)[n], role)]


def pairs_of(prompt: Prompt, which: str) -> list[tuple[Response, Response]]:
    """(preferred, other) of a prompt, by the rank of (rating, is it the chosen one)."""

    def by_role(y: Response) -> tuple:
        return (y.role == Role.CHOSEN,)

    def by_rating(y: Response) -> tuple:
        return (y.rating, y.role == Role.CHOSEN)

    rank = by_rating if which != 'best_rest' and all_rated(prompt) else by_role
    steps = sorted({rank(y) for y in own(prompt)})
    found = []
    for good in own(prompt):
        for bad in own(prompt):
            apart = steps.index(rank(good)) - steps.index(rank(bad))
            if apart == 1 or (apart > 1 and which != 'adjacent'):
                found.append((good, bad))
    return found


def mean_over_pairs(prompts: list[Prompt], which: str, link) -> list[float]:
    losses = []
    for prompt in prompts:
        terms = [link(good, bad) for good, bad in pairs_of(prompt, which)]
        losses.append(math.fsum(terms) / len(terms) if terms else 0.0)
    return losses


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def log_sigmoid(x: float) -> float:
    return -softplus(-x)


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(v - top) for v in values))


def long_exp(x: float) -> float:
    """exp(x), and its tangent at 30 beyond 30."""
    return math.exp(x) if x < 30 else math.exp(30) + math.exp(30) * (x - 30)
