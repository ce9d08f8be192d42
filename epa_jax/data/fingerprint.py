"""What checkpoints say of the data, so that a run goes on with no other."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from epa_jax.config import ConfigError
from epa_jax.types import TokenExample

DATA = 'data_fingerprint'


def data_fingerprint(sources: Iterable[Iterable[TokenExample]]) -> dict[str, str]:
    """A digest of all tokens, roles and ratings, in order."""
    digest = hashlib.sha256()
    for number, examples in enumerate(sources):
        digest.update(f'source {number}'.encode())
        for example in examples:
            for ids in (example.prompt_ids, *example.response_ids):
                digest.update(len(ids).to_bytes(4, 'little'))
                digest.update(np.ascontiguousarray(ids, np.int32).tobytes())
            digest.update(example.roles.tobytes() + example.ratings.tobytes())
    return {DATA: digest.hexdigest()[:32]}


def check_data(saved: Mapping[str, Any], now: Mapping[str, str], origin: str) -> None:
    """Refuses data that a checkpoint was not made from.

    Args:
      saved: what the checkpoint says; one of an earlier version says nothing.
      now: `data_fingerprint` of the data as loaded.
      origin: of the checkpoint, for the message.

    Raises:
      ConfigError: it is other data.
    """
    if saved.get(DATA, now[DATA]) != now[DATA]:
        raise ConfigError(
            f'{origin}: the run began with other data than train and eval of data, sft '
            'and pretrain and the tokenizer give now, so its place in them means nothing; '
            'restore the files, or begin anew in another workdir'
        )
