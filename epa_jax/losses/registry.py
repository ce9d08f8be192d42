"""The table of losses, and how a configuration becomes one.

A loss is a pure function of the whole response table of a batch and of keyword
hyperparameters, with a value per prompt. To add one: write the function, add a line to
`LOSSES`, and add its hyperparameters to `schema.LossConfig` if they are new. A property
that the caller must act on (ratings needed, prompts coupled to one another) becomes a
field of `LossDef`.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import types
from collections.abc import Callable, Mapping

import jax

from epa_jax.config import ConfigError
from epa_jax.losses.energy import epa
from epa_jax.losses.likelihood import sft
from epa_jax.losses.pairwise import dpo
from epa_jax.types import ResponseTable


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`; `open_low` leaves `low` itself out."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high

    def __str__(self) -> str:
        return f'{"above" if self.open_low else "from"} {self.low:g} to {self.high:g}'


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)


@dataclasses.dataclass(frozen=True)
class LossDef:
    """A loss and what it needs.

    Attributes:
      fn: (table, **hyperparameters) -> float32 [N].
      summary: one line.
      ranges: allowed values of each hyperparameter; defaults are those of `fn`.
      needs_reference: reads `ref_logps`.
      min_strong: strong negatives a prompt must have for its loss to mean anything.
      min_negatives: strong and weak negatives together, likewise.
    """

    fn: Callable[..., jax.Array]
    summary: str
    ranges: Mapping[str, Range]
    needs_reference: bool
    min_strong: int
    min_negatives: int

    def defaults(self) -> dict[str, float]:
        """Default of every hyperparameter, as in the signature of `fn`."""
        parameters = inspect.signature(self.fn).parameters
        return {name: parameters[name].default for name in self.ranges}


LOSSES: Mapping[str, LossDef] = types.MappingProxyType(
    {
        'epa': LossDef(
            fn=epa,
            summary='chosen against strong and weak negatives in one softmax',
            ranges={
                'beta': POSITIVE,
                'margin': Range(),
                'weight_strong': NOT_NEGATIVE,
                'weight_weak': NOT_NEGATIVE,
            },
            needs_reference=True,
            min_strong=0,
            min_negatives=1,
        ),
        'dpo': LossDef(
            fn=dpo,
            summary='chosen against each strong negative, Bradley-Terry',
            ranges={
                'beta': POSITIVE,
                'margin': Range(),
                'label_smoothing': Range(0, 0.5),
            },
            needs_reference=True,
            min_strong=1,
            min_negatives=1,
        ),
        'sft': LossDef(
            fn=sft,
            summary='negative log-likelihood of the chosen response',
            ranges={},
            needs_reference=False,
            min_strong=0,
            min_negatives=0,
        ),
    }
)


@dataclasses.dataclass(frozen=True, eq=False)
class Loss:
    """A loss with its hyperparameters fixed.

    Attributes:
      name: key of `LOSSES`.
      definition: what the loss needs.
      hyperparameters: every one the loss takes, defaults filled in.
      fn: table -> float32 [N], loss of each prompt, 0 for padding prompts.
    """

    name: str
    definition: LossDef
    hyperparameters: Mapping[str, float]
    fn: Callable[[ResponseTable], jax.Array]

    @property
    def needs_reference(self) -> bool:
        """Whether `fn` reads `ref_logps`."""
        return self.definition.needs_reference

    @property
    def beta(self) -> float:
        """Scale of the rewards to report; 1 for a loss without beta."""
        if 'beta' not in self.hyperparameters:
            return 1.0
        return self.hyperparameters['beta']


def make_loss(name: str, hyperparameters: Mapping[str, float | None]) -> Loss:
    """The loss `name` with its hyperparameters fixed.

    Args:
      name: key of `LOSSES`.
      hyperparameters: values by name; None, or absence, takes the loss's default.

    Raises:
      ConfigError: an unknown loss, a hyperparameter that it does not take, or a value
        out of range.
    """
    if name not in LOSSES:
        close = difflib.get_close_matches(name, LOSSES, n=1)
        hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(LOSSES)}'
        raise ConfigError(f'loss.name={name!r}: no such loss; {hint}')
    definition = LOSSES[name]
    given = {k: v for k, v in hyperparameters.items() if v is not None}
    for key, value in given.items():
        if key not in definition.ranges:
            takes = ', '.join(definition.ranges) or 'no hyperparameters'
            raise ConfigError(f'loss.{key}={value}: {name} does not use it; takes {takes}')
        if value not in definition.ranges[key]:
            raise ConfigError(
                f'loss.{key}={value}: {name} expects a value {definition.ranges[key]}'
            )
    values = definition.defaults() | given
    fixed = functools.partial(definition.fn, **values)
    return Loss(name, definition, types.MappingProxyType(values), fixed)


def check_needs(loss: Loss, *, n_strong: int, n_weak: int, reference_mode: str) -> None:
    """Refuses a loss that the run cannot feed.

    Args:
      loss: from `make_loss`.
      n_strong: `data.n_strong`, most strong negatives of a prompt.
      n_weak: `data.n_weak`, weak negatives of a prompt.
      reference_mode: `reference.mode`.

    Raises:
      ConfigError: it needs a reference or negatives that the run does not have.
    """
    needs = loss.definition
    if needs.needs_reference and reference_mode == 'none':
        raise ConfigError(
            f"loss.name={loss.name!r} needs a reference and reference.mode='none'; use "
            "'cached' or 'in_step'"
        )
    if n_strong < needs.min_strong:
        raise ConfigError(
            f'loss.name={loss.name!r} needs data.n_strong of at least {needs.min_strong}, '
            f'found {n_strong}'
        )
    if n_strong + n_weak < needs.min_negatives:
        raise ConfigError(
            f'loss.name={loss.name!r} needs data.n_strong + data.n_weak of at least '
            f'{needs.min_negatives}, found {n_strong} + {n_weak}'
        )
