"""What there is to know about a loss besides its formula."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Mapping

import jax
import numpy as np

from epa_jax.losses.pairs import PAIRS
from epa_jax.types import ResponseTable, WeightedSum

Value = float | str | bool


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `open_low` and `open_high` leave them out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = 'above' if self.open_low else 'from'
        high = 'below' if self.open_high else 'to'
        return f'{low} {self.low:g} {high} {self.high:g}'


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    options: tuple[Value, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.options

    def __str__(self) -> str:
        return ' or '.join(map(str, self.options))


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
ANY = Range()
TOKENS = Choice(('sum', 'mean'))
WHICH_PAIRS = Choice(PAIRS)


@dataclasses.dataclass(frozen=True)
class LossDef:
    """A loss and what it needs.

    Attributes:
      fn: (table, **hyperparameters) -> float32 [N].
      summary: one line.
      source: where it was published.
      allowed: values of each hyperparameter; defaults are those of `fn`.
      needs_reference: reads `ref_logps`.
      ratings: 'unused', 'always' or 'ranks': needed as soon as a prompt has several
        strong negatives, whose order they give.
      min_strong: strong negatives a prompt must have for its loss to mean anything.
      min_negatives: strong and weak negatives together, likewise.
      min_weak: weak negatives, likewise.
      couples_prompts: a prompt's loss depends on the other prompts of the step.
      differences_only: depends on likelihoods only by differences of whole log-ratios
        within a prompt, so that another divergence may stand in for them.
      shiftable: a margin can be asked for by shifting rewards of strong negatives.
      per_token: rewards to report are means over tokens.
      carry: statistic summed over the run and handed to `fn` as `carried`.
    """

    fn: Callable[..., jax.Array]
    summary: str
    source: str
    allowed: Mapping[str, Range | Choice]
    needs_reference: bool = True
    ratings: typing.Literal['unused', 'always', 'ranks'] = 'unused'
    min_strong: int = 1
    min_negatives: int = 1
    min_weak: int = 0
    couples_prompts: bool = False
    differences_only: bool = True
    shiftable: bool = True
    per_token: bool = False
    carry: Callable[..., WeightedSum] | None = None

    def defaults(self) -> dict[str, Value]:
        """Default of every hyperparameter, as in the signature of `fn`."""
        parameters = inspect.signature(self.fn).parameters
        return {name: parameters[name].default for name in self.allowed}

    def with_values(self, values: Mapping[str, Value]) -> 'LossDef':
        """What it needs when its hyperparameters are these."""
        changes: dict[str, typing.Any] = {}
        if values.get('against') == 'reference':
            changes |= {'needs_reference': True, 'differences_only': True}
        if values.get('tokens') == 'mean':
            changes |= {'differences_only': False, 'per_token': True}
        if values.get('rating_temperature') == 0:
            changes['ratings'] = 'unused'
        if values.get('pairs') in ('all', 'adjacent') and self.ratings == 'unused':
            changes['ratings'] = 'ranks'
        if values.get('baseline') == 'zero':
            changes |= {'min_weak': 0, 'min_negatives': 0, 'couples_prompts': False}
        if 'shift' in values and values['shift'] != 'running':
            changes['carry'] = None
        if values.get('shift') == 'none':
            changes['couples_prompts'] = False
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss with its hyperparameters and modifiers fixed.

    Attributes:
      name: as in the configuration.
      needs: what it needs with these values; of several losses, what all need together.
      hyperparameters: every one in use, defaults filled in.
      fn: (table, carried=()) -> float32 [N], loss of each prompt, 0 for padding prompts.
      carry: table -> pytree of `WeightedSum`, to be added up over the run; fn takes the
        sum. () when nothing is carried.
      tail_weight: weight of a response's tokens past the shortest of its prompt; 1
        counts all alike.
      needs_collision: reads the table's `log_collision`.
    """

    name: str
    needs: LossDef
    hyperparameters: Mapping[str, Value]
    fn: Callable[..., jax.Array]
    carry: Callable[[ResponseTable], typing.Any]
    tail_weight: float = 1.0
    needs_collision: bool = False

    def nothing_carried(self) -> typing.Any:
        """What is carried into the first step: zeros, or ()."""
        no_response = np.zeros((1, 1), np.float32)
        return self.carry(
            ResponseTable(
                logps=no_response,
                ref_logps=no_response,
                lengths=no_response.astype(np.int32),
                roles=no_response.astype(np.int8),
            )
        )

    @property
    def needs_reference(self) -> bool:
        """Whether `fn` reads `ref_logps`."""
        return self.needs.needs_reference

    @property
    def beta(self) -> float:
        """Scale of the rewards to report; 1 for a loss without beta."""
        return float(self.hyperparameters.get('beta', 1.0))
