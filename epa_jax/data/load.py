"""The examples that a run trains on and those it holds out."""

import dataclasses
import functools
import random
from collections.abc import Sequence

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
    examples, read = read_examples(cfg.train, layout=cfg.layout, bad_lines=cfg.bad_lines)
    reads = [read]
    held_out: list[Example] = []
    shared: list[Example] = []
    if cfg.eval:
        held_out, read = read_examples(
            cfg.eval, layout=cfg.layout, bad_lines=cfg.bad_lines, limit=cfg.eval_examples
        )
        reads.append(read)
        examples, shared = _without_prompts_of(examples, held_out)
    elif cfg.eval_examples:
        examples, held_out = split_examples(examples, cfg.eval_examples, cfg.split_seed)
    limit = cfg.max_examples or len(examples)
    unusable = functools.partial(_lacks_negatives, min_strong)
    train, report = tokenise(examples[:limit], tokenizer, cfg, unusable=unusable)
    report.drop(HELD_OUT, [example.origin for example in shared])
    report.drop(BEYOND_LIMIT, [example.origin for example in examples[limit:]])
    kept, held_out_report = tokenise(held_out, tokenizer, cfg, unusable=unusable)
    if not train:
        raise ConfigError(
            f'data.train={cfg.train!r}: no example remains to train on; dropped: '
            f'{dict(report.dropped)}'
        )
    if held_out and not kept:
        raise ConfigError(
            f'no held-out example remains; dropped: {dict(held_out_report.dropped)}'
        )
    return Datasets(train, kept, reads, report, held_out_report)


def split_examples(
    examples: Sequence[Example], count: int, seed: int
) -> tuple[list[Example], list[Example]]:
    """Takes at least `count` examples out at random, whole prompts at a time.

    Examples of one prompt stay together, so that no held-out prompt is trained on.

    Args:
      examples: all examples.
      count: how many to hold out.
      seed: fixes the choice, which does not depend on the order of the examples.

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
            f'data.eval_examples={count}: only {len(examples)} examples in all, none would '
            'remain to train on'
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
