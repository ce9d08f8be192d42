"""Text whose likelihood is raised beside the preference loss."""

import dataclasses
import functools
from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.documents import Document, held_out_places, read_documents, sequences
from epa_jax.data.examples import ReadReport
from epa_jax.data.load import HELD_OUT, read_split
from epa_jax.data.reading import Reading, read_parts
from epa_jax.data.tokenise import TokeniseReport, tokenise
from epa_jax.schema import DataConfig, PretrainConfig, RunConfig, SftConfig
from epa_jax.types import Example, Role, TokenExample


@dataclasses.dataclass(frozen=True)
class Stream:
    """A source of text to be made likelier.

    Attributes:
      name: 'sft' or 'pretrain', the group of its keys and metrics.
      weight: of its mean negative log-likelihood per token, in nats.
      sequences: sequences of a step.
      train: token examples of one response; its tokens are those to predict.
      held_out: likewise, to measure; may be empty.
      read: what the sources held.
      tokenised: what became of the examples of `train`.
      held_out_tokenised: what became of the others.
    """

    name: str
    weight: float
    sequences: int
    train: list[TokenExample]
    held_out: list[TokenExample]
    read: list[ReadReport]
    tokenised: TokeniseReport
    held_out_tokenised: TokeniseReport


def load_streams(
    run: RunConfig, tokenizer: PreTrainedTokenizerBase, held_out: Collection[bytes] = ()
) -> list[Stream]:
    """Reads and tokenises the streams that the configuration names.

    Args:
      run: the configuration.
      tokenizer: of the model.
      held_out: keys of prompts that must not be trained on.

    Raises:
      sources.DataError: data that cannot be read.
      ConfigError: nothing remains to train on.
    """
    streams = []
    if run.sft.train:
        streams.append(_sft(run.sft, run, tokenizer, held_out))
    if run.pretrain.train:
        streams.append(_pretrain(run.pretrain, run, tokenizer))
    return streams


def _sft(
    cfg: SftConfig,
    run: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    held_out: Collection[bytes],
) -> Stream:
    """Responses to prompts; of several responses the chosen one."""
    split = read_split(cfg, run.data.bad_lines, run.data.split_seed, 'sft', held_out)
    wanted, dropped = [_chosen(e) for e in split.train], {HELD_OUT: split.shared}
    train, report = tokenise(wanted, tokenizer, run.data, dropped=dropped)
    kept, kept_report = tokenise([_chosen(e) for e in split.held_out], tokenizer, run.data)
    if not train:
        raise ConfigError(
            f'sft.train={cfg.train!r}: no example remains to train on; dropped: '
            f'{dict(report.dropped)}'
        )
    return Stream(
        'sft', cfg.weight, cfg.sequences, train, kept, split.reads, report, kept_report
    )


def _chosen(example: Example) -> Example:
    """The example with its chosen response alone."""
    text = example.responses[example.roles.index(Role.CHOSEN)]
    return dataclasses.replace(
        example, responses=(text,), roles=(Role.CHOSEN,), ratings=None
    )


def _pretrain(
    cfg: PretrainConfig, run: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> Stream:
    """Documents, in sequences of limited length."""
    train_on, held_out, reads = _split_documents(cfg, run.data)
    train = sequences(train_on, tokenizer, cfg.max_tokens, cfg.append_eos)
    kept = sequences(held_out, tokenizer, cfg.max_tokens, cfg.append_eos)
    fates = [TokeniseReport(kept=len(part)) for part in (train, kept)]
    return Stream('pretrain', cfg.weight, cfg.sequences, train, kept, reads, *fates)


def _split_documents(
    cfg: PretrainConfig, data: DataConfig
) -> tuple[list[Document], list[Document], list[ReadReport]]:
    """This process's documents to train on and to hold out, and what the sources held."""
    read = functools.partial(read_documents, key=cfg.text_key, bad_lines=data.bad_lines)

    def reading(source: str, limit: int = 0) -> Reading[Document]:
        return read_parts(source, read, lambda document: b'', 'texts', limit)

    source = reading(cfg.train)
    if cfg.eval:
        other = reading(cfg.eval, cfg.eval_examples)
        return source.own, other.own, [source.report, other.report]
    chosen: set[int] = set()
    if cfg.eval_examples:
        chosen = held_out_places(
            source.report.read, cfg.eval_examples, data.split_seed, 'pretrain.eval_examples'
        )
    sides: tuple[list[Document], list[Document]] = ([], [])
    for place, document in enumerate(source.own, start=len(source.keys_before)):
        sides[place in chosen].append(document)
    return *sides, [source.report]
