"""The examples that a run trains on and those it holds out."""

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.negatives import strong_candidates
from epa_jax.data.sources import ReadReport, read_examples
from epa_jax.data.tokenise import TokeniseReport, prompt_key, tokenise
from epa_jax.schema import DataConfig
from epa_jax.types import Example, TokenExample

NO_NEGATIVE = 'too few responses differ from the chosen one in text and rating'
HELD_OUT = 'its prompt is held out'
BEYOND_LIMIT = 'beyond data.max_examples'


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Examples of a run.

    Attributes:
      train: to train on.
      held_out: to evaluate on; no prompt of them is in `train`. May be empty.
      read: what the sources held.
      tokenised: what became of the training examples.
      held_out_tokenised: what became of the others.
    """

    train: list[TokenExample]
    held_out: list[TokenExample]
    read: list[ReadReport]
    tokenised: TokeniseReport
    held_out_tokenised: TokeniseReport


def load_datasets(
    cfg: DataConfig, tokenizer: PreTrainedTokenizerBase, *, min_strong: int
) -> Datasets:
    """Reads, splits and tokenises the examples of a run.

    Args:
      cfg: the data's configuration.
      tokenizer: of the model.
      min_strong: strong negatives that the loss needs; examples with fewer are dropped.

    Raises:
      sources.DataError: data that cannot be read.
      ConfigError: nothing remains to train on.
    """
    split = read_split(cfg, cfg.bad_lines, cfg.split_seed)
    examples = split.train
    limit = cfg.max_examples or len(examples)
    unusable = functools.partial(_lacks_negatives, min_strong)
    train, report = tokenise(examples[:limit], tokenizer, cfg, unusable=unusable)
    report.drop(HELD_OUT, [example.origin for example in split.shared])
    report.drop(BEYOND_LIMIT, [example.origin for example in examples[limit:]])
    kept, held_out_report = tokenise(split.held_out, tokenizer, cfg, unusable=unusable)
    if not train:
        raise ConfigError(
            f'data.train={cfg.train!r}: no example remains to train on; dropped: '
            f'{dict(report.dropped)}'
        )
    if split.held_out and not kept:
        raise ConfigError(
            f'no held-out example remains; dropped: {dict(held_out_report.dropped)}'
        )
    return Datasets(train, kept, split.reads, report, held_out_report)


class Source(Protocol):
    """The keys that name training and held-out examples; see `schema.DataConfig`."""

    @property
    def train(self) -> str: ...
    @property
    def eval(self) -> str: ...
    @property
    def eval_examples(self) -> int: ...
    @property
    def layout(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples as text.

    Attributes:
      train: to train on.
      held_out: to evaluate on.
      shared: left out of `train`, for their prompts are held out.
      reads: what the sources held.
    """

    train: list[Example]
    held_out: list[Example]
    shared: list[Example]
    reads: list[ReadReport]


def read_split(cfg: Source, bad_lines: str, seed: int, group: str = 'data') -> Split:
    """Reads a source, and holds examples out of it or reads those of another.

    Args:
      cfg: which sources.
      bad_lines: as in `schema.DataConfig`.
      seed: of the split.
      group: the configuration's group of these keys, for messages.

    Raises:
      sources.DataError: data that cannot be read.
      ConfigError: see `split_examples`.
    """
    examples, read = read_examples(cfg.train, layout=cfg.layout, bad_lines=bad_lines)
    if cfg.eval:
        held_out, read_too = read_examples(
            cfg.eval, layout=cfg.layout, bad_lines=bad_lines, limit=cfg.eval_examples
        )
        kept, shared = _without_prompts_of(examples, held_out)
        return Split(kept, held_out, shared, [read, read_too])
    if cfg.eval_examples:
        kept, held_out = split_examples(examples, cfg.eval_examples, seed, group)
        return Split(kept, held_out, [], [read])
    return Split(examples, [], [], [read])


def split_examples(
    examples: Sequence[Example], count: int, seed: int, group: str = 'data'
) -> tuple[list[Example], list[Example]]:
    """Takes at least `count` examples out at random, whole prompts at a time.

    Examples of one prompt stay together, so that no held-out prompt is trained on.

    Args:
      examples: all examples.
      count: how many to hold out.
      seed: fixes the choice, which does not depend on the order of the examples.
      group: the configuration's group of keys, for messages.

    Returns:
      The remaining and the held-out examples, each in their order.

    Raises:
      ConfigError: nothing would remain.
    """
    keys = [prompt_key(example.prompt) for example in examples]
    order = sorted(set(keys))
    random.Random(seed).shuffle(order)
    sizes = dict.fromkeys(order, 0)
    for key in keys:
        sizes[key] += 1
    chosen: set[bytes] = set()
    total = 0
    for key in order:
        if total >= count:
            break
        chosen.add(key)
        total += sizes[key]
    if total == len(examples):
        raise ConfigError(
            f'{group}.eval_examples={count}: only {len(examples)} examples in all, none '
            'would remain to train on'
        )
    held_out = [e for e, key in zip(examples, keys, strict=True) if key in chosen]
    return [e for e, k in zip(examples, keys, strict=True) if k not in chosen], held_out


def _without_prompts_of(
    examples: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[Example], list[Example]]:
    """Examples whose prompt is not held out, and those whose prompt is."""
    keys = {prompt_key(example.prompt) for example in held_out}
    kept: list[Example] = []
    shared: list[Example] = []
    for example in examples:
        (shared if prompt_key(example.prompt) in keys else kept).append(example)
    return kept, shared


def _lacks_negatives(min_strong: int, example: TokenExample) -> str | None:
    return NO_NEGATIVE if len(strong_candidates(example)) < min_strong else None
