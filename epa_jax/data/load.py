"""The examples that a run trains on and those it holds out."""

import dataclasses
import functools
import random
from collections.abc import Collection, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.examples import ReadReport, read_examples
from epa_jax.data.negatives import strong_candidates
from epa_jax.data.reading import Reading, read_parts
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

    Each process reads and tokenises its part, and gets the tokens of the others.

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
    room = max(cfg.max_examples - split.before, 0) if cfg.max_examples else len(examples)
    unusable = functools.partial(_lacks_negatives, min_strong)
    train, report = tokenise(
        examples[:room],
        tokenizer,
        cfg,
        unusable=unusable,
        dropped={HELD_OUT: split.shared, BEYOND_LIMIT: examples[room:]},
    )
    kept, held_out_report = tokenise(split.held_out, tokenizer, cfg, unusable=unusable)
    if not train:
        raise ConfigError(
            f'data.train={cfg.train!r}: no example remains to train on; dropped: '
            f'{dict(report.dropped)}'
        )
    if (cfg.eval or cfg.eval_examples) and not kept:
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
    """Examples as text: of each list, this process's part.

    Attributes:
      train: to train on.
      held_out: to evaluate on.
      shared: left out of `train`, for their prompts are held out.
      before: how many to train on come before these.
      reads: what the sources held.
    """

    train: list[Example]
    held_out: list[Example]
    shared: list[Example]
    before: int
    reads: list[ReadReport]


def read_split(
    cfg: Source,
    bad_lines: str,
    seed: int,
    group: str = 'data',
    excluded: Collection[bytes] = (),
) -> Split:
    """Reads a source, and holds examples out of it or reads those of another.

    Args:
      cfg: which sources.
      bad_lines: as in `schema.DataConfig`.
      seed: of the split.
      group: the configuration's group of these keys, for messages.
      excluded: keys of prompts that are held out elsewhere.

    Raises:
      sources.DataError: data that cannot be read.
      ConfigError: see `held_out_prompts`.
    """
    read = functools.partial(read_examples, layout=cfg.layout, bad_lines=bad_lines)

    def reading(source: str, limit: int = 0) -> Reading[Example]:
        return read_parts(source, read, _key, 'examples', limit)

    source = reading(cfg.train)
    elsewhere, reads = list[Example](), [source.report]
    chosen, shared = set[bytes](), set(excluded)
    if cfg.eval:
        other = reading(cfg.eval, cfg.eval_examples)
        elsewhere, reads = other.own, [source.report, other.report]
        shared |= set(other.all_keys)
    elif cfg.eval_examples:
        chosen = held_out_prompts(source.all_keys, cfg.eval_examples, seed, group)
        shared -= chosen
    withheld = chosen | shared
    pairs = list(zip(source.own, source.own_keys, strict=True))
    return Split(
        train=[example for example, key in pairs if key not in withheld],
        held_out=[*elsewhere, *(example for example, key in pairs if key in chosen)],
        shared=[example for example, key in pairs if key in shared],
        before=sum(key not in withheld for key in source.keys_before),
        reads=reads,
    )


def held_out_prompts(
    keys: Sequence[bytes], count: int, seed: int, group: str = 'data'
) -> set[bytes]:
    """Chooses prompts at random until they are those of at least `count` examples.

    Examples of one prompt stay together, so that no held-out prompt is trained on.

    Args:
      keys: of the prompts of all examples.
      count: how many examples to hold out.
      seed: fixes the choice, which does not depend on the order of the examples.
      group: the configuration's group of keys, for messages.

    Raises:
      ConfigError: nothing would remain.
    """
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
    if total == len(keys):
        raise ConfigError(
            f'{group}.eval_examples={count}: only {len(keys)} examples in all, none '
            'would remain to train on'
        )
    return chosen


def _key(example: Example) -> bytes:
    return prompt_key(example.prompt)


def _lacks_negatives(min_strong: int, example: TokenExample) -> str | None:
    return NO_NEGATIVE if len(strong_candidates(example)) < min_strong else None
