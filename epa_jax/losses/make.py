"""From the values of a configuration to a loss: names, sums, modifiers, refusals."""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Mapping, Sequence

import jax

from epa_jax.config import ConfigError
from epa_jax.losses import modifiers
from epa_jax.losses.definition import (
    NOT_NEGATIVE,
    TOKENS,
    Choice,
    Loss,
    LossDef,
    Range,
    Value,
)
from epa_jax.losses.likelihood import chosen_nll
from epa_jax.losses.registry import LOSSES
from epa_jax.types import ResponseTable

SWITCH = Choice((True, False))

# Hyperparameters of no loss in particular; unset, they do nothing.
MODIFIERS: Mapping[str, Range | Choice] = types.MappingProxyType(
    {
        'reference_free': SWITCH,
        'divergence': Choice(modifiers.DIVERGENCES),
        'divergence_alpha': Range(0, 1),
        'rating_margin': NOT_NEGATIVE,
        'tail_weight': Range(0, 1),
        'wpo': SWITCH,
        'nll_weight': NOT_NEGATIVE,
        'nll_tokens': TOKENS,
    }
)
TERM = re.compile(r'(?:(?P<weight>[0-9.eE+-]+)\s*\*)?\s*(?P<name>[a-z_]+)')


@dataclasses.dataclass(frozen=True)
class Term:
    """One loss of a sum.

    Attributes:
      weight: its factor.
      needs: its definition with these values.
      values: its hyperparameters, defaults filled in.
    """

    weight: float
    needs: LossDef
    values: Mapping[str, Value]

    def losses(self, table: ResponseTable, carried: typing.Any) -> jax.Array:
        """Its part of the sum, [N]."""
        extra = {} if self.needs.carry is None else {'carried': carried}
        return self.weight * self.needs.fn(table, **self.values, **extra)

    def statistic(self, table: ResponseTable) -> typing.Any:
        """What it carries, or None."""
        if self.needs.carry is None:
            return None
        return self.needs.carry(table, beta=self.values['beta'])


def make_loss(
    name: str,
    hyperparameters: Mapping[str, Value | None],
    losses: Mapping[str, LossDef] = LOSSES,
) -> Loss:
    """The loss `name` with its hyperparameters and modifiers fixed.

    Args:
      name: a key of `losses`, or a weighted sum of some, such as '0.8*dpo + 0.2*bco'.
        Terms share a hyperparameter of the same name.
      hyperparameters: values by name; None, or absence, takes the loss's default and
        leaves a modifier off.
      losses: by name; those of the package unless given.

    Raises:
      ConfigError: an unknown loss, a hyperparameter that it does not take, a value out of
        range, or a modifier that the loss cannot have.
    """
    given = {k: v for k, v in hyperparameters.items() if v is not None}
    terms = [_term(weight, base, given, losses) for weight, base in parse(name, losses)]
    taken = {key for term in terms for key in term.values}
    mods = {k: v for k, v in given.items() if k not in taken}
    for key, value in mods.items():
        if key not in MODIFIERS:
            takes = ', '.join(sorted(taken)) or 'no hyperparameters'
            raise ConfigError(f'loss.{key}={value}: {name} does not use it; takes {takes}')
        _check(key, value, MODIFIERS[key], 'the modifier')
    needs = _together(terms)
    _check_modifiers(name, mods, needs)
    if mods.get('reference_free'):
        needs = dataclasses.replace(needs, needs_reference=False)
    if mods.get('rating_margin'):
        needs = dataclasses.replace(needs, ratings='always')
    if mods.get('wpo'):
        needs = dataclasses.replace(needs, min_strong=max(needs.min_strong, 1))
    values = {key: value for term in reversed(terms) for key, value in term.values.items()}
    return Loss(
        name=name,
        needs=needs,
        hyperparameters=types.MappingProxyType(values | mods),
        fn=functools.partial(_losses, terms, mods),
        carry=functools.partial(_statistics, terms, mods),
        tail_weight=float(mods.get('tail_weight', 1.0)),
        needs_collision=bool(mods.get('wpo', False)),
    )


def parse(name: str, losses: Mapping[str, LossDef] = LOSSES) -> list[tuple[float, str]]:
    """Weights and names of a sum such as '0.8*dpo + 0.2*bco'; no weight is a weight of 1.

    Raises:
      ConfigError: not a sum of known losses, or one of them twice.
    """
    terms = []
    for text in name.split('+'):
        match = TERM.fullmatch(text.strip())
        if not match:
            raise ConfigError(
                f'loss.name={name!r}: expected a loss or a sum such as '
                f"'0.8*dpo + 0.2*bco'; cannot read {text.strip()!r}"
            )
        weight, base = match['weight'], match['name']
        if base not in losses:
            close = difflib.get_close_matches(base, losses, n=1)
            hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(losses)}'
            raise ConfigError(f'loss.name={name!r}: no such loss; {hint}')
        terms.append((_weight(name, weight), base))
    names = [base for _, base in terms]
    if len(set(names)) < len(names):
        raise ConfigError(f'loss.name={name!r}: a loss is named twice; add its weights')
    return terms


def _weight(name: str, text: str | None) -> float:
    try:
        weight = 1.0 if text is None else float(text)
    except ValueError:
        weight = -1.0
    if weight not in Range(0, open_low=True):
        raise ConfigError(f'loss.name={name!r}: {text!r}: expected a weight above 0')
    return weight


def _term(
    weight: float, name: str, given: Mapping[str, Value], losses: Mapping[str, LossDef]
) -> Term:
    definition = losses[name]
    mine = {key: value for key, value in given.items() if key in definition.allowed}
    for key, value in mine.items():
        _check(key, value, definition.allowed[key], name)
    values = definition.defaults() | mine
    return Term(weight, definition.with_values(values), values)


def _check(key: str, value: Value, allowed: Range | Choice, name: str) -> None:
    if value not in allowed:
        raise ConfigError(f'loss.{key}={value}: {name} expects a value {allowed}')


def _together(terms: Sequence[Term]) -> LossDef:
    """What all terms need."""
    all_needs = [term.needs for term in terms]
    by_need = ('unused', 'ranks', 'always')
    return dataclasses.replace(
        all_needs[0],
        needs_reference=any(n.needs_reference for n in all_needs),
        ratings=max((n.ratings for n in all_needs), key=by_need.index),
        min_strong=max(n.min_strong for n in all_needs),
        min_negatives=max(n.min_negatives for n in all_needs),
        min_weak=max(n.min_weak for n in all_needs),
        couples_prompts=any(n.couples_prompts for n in all_needs),
        differences_only=all(n.differences_only for n in all_needs),
        shiftable=all(n.shiftable for n in all_needs),
    )


def _check_modifiers(name: str, mods: Mapping[str, Value], needs: LossDef) -> None:
    """Refuses what would be ignored, or would mean something else than its name."""
    if mods.get('reference_free') and not needs.needs_reference:
        raise ConfigError(f'loss.reference_free: {name} has no reference to leave out')
    if 'divergence' in mods:
        if mods.get('reference_free'):
            raise ConfigError(
                'loss.divergence: loss.reference_free leaves none to the policy'
            )
        if not (needs.differences_only and needs.needs_reference):
            raise ConfigError(
                'loss.divergence: only for losses of differences of whole log-ratios, '
                f'which {name} is not'
            )
    if ('divergence_alpha' in mods) != (mods.get('divergence') == 'alpha'):
        raise ConfigError("loss.divergence_alpha and loss.divergence='alpha' go together")
    if mods.get('rating_margin'):
        if needs.ratings == 'always':
            raise ConfigError(f'loss.rating_margin: {name} uses the ratings itself')
        if not needs.shiftable:
            raise ConfigError(f'loss.rating_margin: {name} has no margin to shift')
    if 'nll_tokens' in mods and not mods.get('nll_weight'):
        raise ConfigError('loss.nll_tokens: needs loss.nll_weight')


def _modified(mods: Mapping[str, Value], term: Term, table: ResponseTable) -> ResponseTable:
    """The table that a term sees."""
    if mods.get('reference_free'):
        table = modifiers.drop_reference(table)
    if 'divergence' in mods:
        alpha = float(mods.get('divergence_alpha', 0.0))
        table = modifiers.use_divergence(table, str(mods['divergence']), alpha)
    if mods.get('rating_margin'):
        scale = float(mods['rating_margin']) / float(term.values.get('beta', 1.0))
        table = modifiers.add_rating_margin(table, scale, term.needs.per_token)
    return table


def _losses(
    terms: Sequence[Term],
    mods: Mapping[str, Value],
    table: ResponseTable,
    carried: typing.Any = (),
) -> jax.Array:
    """Loss of each prompt, [N]; `carried` holds what each term carries, () for none."""
    total = sum(
        term.losses(_modified(mods, term, table), part)
        for term, part in zip(terms, carried or [None] * len(terms), strict=True)
    )
    if mods.get('wpo'):
        total *= modifiers.wpo_weight(table)
    if mods.get('nll_weight'):
        nll = chosen_nll(table, str(mods.get('nll_tokens', 'mean')))
        total += float(mods['nll_weight']) * nll
    return typing.cast(jax.Array, total)


def _statistics(
    terms: Sequence[Term], mods: Mapping[str, Value], table: ResponseTable
) -> typing.Any:
    """What the terms carry from this table, or () when none does."""
    if all(term.needs.carry is None for term in terms):
        return ()
    return tuple(term.statistic(_modified(mods, term, table)) for term in terms)
