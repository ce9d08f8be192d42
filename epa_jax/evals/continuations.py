"""A text and what follows it as tokens of the whole."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError


class Continuation(NamedTuple):
    """What is given and what is scored, int32; both have a token or more."""

    context: np.ndarray
    continuation: np.ndarray


def encode_continuations(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    max_tokens: int,
) -> tuple[list[Continuation], int]:
    """Tokenises context and continuation as one text and cuts where the context ends.

    A token that straddles the border is scored. The tokenizer's beginning-of-sequence
    token is given where it adds one, and where nothing else would be given.

    Args:
      tokenizer: of the model.
      pairs: contexts and continuations.
      max_tokens: what the model can read; longer contexts are cut on the left.

    Returns:
      Tokens of every pair, and how many contexts were cut.

    Raises:
      ConfigError: a continuation without tokens, or one that is too long by itself.
    """
    found = tokenizer(
        [context + continuation for context, continuation in pairs],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    out, cuts = [], 0
    for i, (context, continuation) in enumerate(pairs):
        lead, ids, ends = _parts(
            found['input_ids'][i],
            found['special_tokens_mask'][i],
            [end for _, end in found['offset_mapping'][i]],
        )
        first = next((t for t, end in enumerate(ends) if end > len(context)), len(ids))
        given, scored = ids[:first], ids[first:]
        if not scored:
            raise ConfigError(f'{continuation!r} after {context[-40:]!r} has no tokens')
        lead = lead or ([] if given else [_begin(tokenizer)])
        room = max_tokens - len(lead) - len(scored)
        if room < 0 or (room == 0 and not lead):
            raise ConfigError(
                f'{continuation[:40]!r}... has {len(scored)} tokens, the model reads '
                f'{max_tokens}'
            )
        cuts += len(given) > room
        given = given[max(len(given) - room, 0) :]
        out.append(
            Continuation(np.array(lead + given, np.int32), np.array(scored, np.int32))
        )
    return out, cuts


def _parts(
    ids: Sequence[int], special: Sequence[int], ends: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """Special tokens that the tokenizer puts first, the text's own, and where they end."""
    own = [t for t, is_special in enumerate(special) if not is_special]
    if not own:
        return list(ids[:1]), [], []
    text = slice(own[0], own[-1] + 1)
    return list(ids[: own[0]]), list(ids[text]), list(ends[text])


def _begin(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ConfigError(
        'an empty context needs a beginning- or end-of-sequence token, and the tokenizer '
        'has neither'
    )


def share_contexts(pairs: Sequence[Continuation]) -> list[list[int]]:
    """Groups of pairs that are scored behind one copy of their context.

    A group's continuations together are not longer than the context, or it has but one:
    so rows are at most twice as long as the longest pair needs.

    Returns:
      Indices of the pairs of each group.
    """
    groups: list[list[int]] = []
    latest: dict[bytes, tuple[list[int], int]] = {}
    for i, (given, scored) in enumerate(pairs):
        key = given.tobytes()
        members, room = latest.get(key, ([], 0))
        if not members or room < len(scored):
            members, room = [], len(given)
            groups.append(members)
        members.append(i)
        latest[key] = (members, room - len(scored))
    return groups
