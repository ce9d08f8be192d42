"""The values that cross from one part of the package to another.

Shape letters used throughout the package:

  N  prompts in one optimiser step       K  responses of a prompt (table columns)
  B  packed rows in a micro-batch        G  prompts ("groups") that fit one row
  T  tokens of a row                     S  scored response tokens of a row
  V  vocabulary                          D  model width
"""

import dataclasses
import enum
from typing import Any, NamedTuple

import flax.struct
import numpy as np

Array = Any  # jax.Array on devices, np.ndarray on the host
Params = Any  # nested dict of arrays


class Role(enum.IntEnum):
    """What a response is to its prompt; the dtype in tables is int8."""

    PAD = 0
    CHOSEN = 1
    REJECTED = 2  # a strong negative: a worse response to the same prompt
    WEAK = 3  # a response that belongs to another prompt


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


def as_messages(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    """A prompt as a conversation: plain text is the user's turn."""
    return (Message('user', prompt),) if isinstance(prompt, str) else prompt


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with its responses, as text.

    Attributes:
      prompt: plain text, or the messages that precede the response.
      responses: K >= 1 response texts.
      roles: K roles, exactly one of them CHOSEN.
      ratings: K scores (higher is better), or None when the source has none.
      origin: where it was read, such as 'file.jsonl:12'; used in messages.
    """

    prompt: str | tuple[Message, ...]
    responses: tuple[str, ...]
    roles: tuple[Role, ...]
    ratings: tuple[float, ...] | None
    origin: str


@dataclasses.dataclass(frozen=True)
class TokenExample:
    """An `Example` as tokens.

    Attributes:
      prompt_ids: int32 [P], template and BOS included.
      response_ids: K arrays int32 [R_k], end-of-sequence included.
      roles: int8 [K].
      ratings: float32 [K], NaN where the source has none.
      prompt_key: digest of the prompt; equal for duplicate prompts.
      origin: as in `Example`.
    """

    prompt_ids: np.ndarray
    response_ids: tuple[np.ndarray, ...]
    roles: np.ndarray
    ratings: np.ndarray
    prompt_key: bytes
    origin: str


@dataclasses.dataclass(frozen=True)
class TokenGroup:
    """What one visit of a prompt trains on, in the order chosen, strong, weak.

    Attributes:
      key: negatives' draw * number of examples + index of the example. Equal keys are
        equal groups in one run, whatever the shuffle; the reference cache uses them.
      prompt_ids: int32 [P].
      response_ids: at most K arrays int32 [R_k].
      roles: int8 [k] for the k <= K responses present.
      ratings: float32 [k], NaN where unknown (always NaN for WEAK).
    """

    key: int
    prompt_ids: np.ndarray
    response_ids: tuple[np.ndarray, ...]
    roles: np.ndarray
    ratings: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of the shared-prompt layout: P + sum of R_k."""
        return len(self.prompt_ids) + sum(len(r) for r in self.response_ids)


@flax.struct.dataclass
class PackedBatch:
    """Rows of packed groups: `[prompt, y_1 .. y_k]` after one another, then padding.

    Token t sees token s when both are of one segment, s <= t, and s is of the prompt
    (branch 0) or of the same branch. Positions of each response restart where the
    prompt ended. The first token of every response is predicted by the hidden state
    of the last prompt token, so scored tokens are listed instead of shifted.

    Attributes:
      tokens: int32 [B, T]; padding holds 0.
      positions: int32 [B, T].
      segments: int32 [B, T]; 0 is padding, 1..G the group within the row.
      branches: int32 [B, T]; 0 is the prompt, 1..K the response.
      score_positions: int32 [B, S]; index into T of the state that predicts.
      score_targets: int32 [B, S]; the token predicted.
      score_slots: int32 [B, S]; g * K + k of the response it belongs to, or G * K
        for padding. Scored tokens come first, padding last.
      lengths: int32 [B, G, K]; scored tokens of each response.
      roles: int8 [B, G, K].
      ratings: float32 [B, G, K]; NaN where unknown.
      keys: int32 [B, G]; `TokenGroup.key`, or -1 for an empty place.
      ref_logps: float32 [B, G, K], or None when not cached.
    """

    tokens: Array
    positions: Array
    segments: Array
    branches: Array
    score_positions: Array
    score_targets: Array
    score_slots: Array
    lengths: Array
    roles: Array
    ratings: Array
    keys: Array
    ref_logps: Array | None = None


@flax.struct.dataclass
class ResponseTable:
    """All that a preference loss sees: one row a prompt, one column a response.

    Attributes:
      logps: float32 [N, K]; sum over response tokens of log pi(y_k | x).
      ref_logps: float32 [N, K] under the reference, or None without one.
      lengths: int32 [N, K]; tokens in the sum.
      roles: int8 [N, K]; a prompt without a CHOSEN response is padding.
      ratings: float32 [N, K]; NaN where unknown, or None when no source has them.
      log_q: float32 [N, K]; log of the rate at which the sampler of negatives draws the
        response, up to a constant for each prompt; None leaves losses uncorrected.
      log_collision: float32 [N, K]; mean over response tokens of log sum_v pi(v)^2, the
        policy's own confidence, without a gradient; None where no loss asks for it.
    """

    logps: Array
    ref_logps: Array | None
    lengths: Array
    roles: Array
    ratings: Array | None = None
    log_q: Array | None = None
    log_collision: Array | None = None


@flax.struct.dataclass
class WeightedSum:
    """A mean in transit: sums and weights add across shards, then divide once."""

    total: Array
    weight: Array

    def __add__(self, other: 'WeightedSum') -> 'WeightedSum':
        return WeightedSum(self.total + other.total, self.weight + other.weight)


@flax.struct.dataclass
class TrainState:
    """What an update reads and writes.

    Attributes:
      step: int32 []; updates attempted, skipped ones included.
      params: the policy's parameters.
      opt_state: optax state.
      skipped: int32 []; updates skipped for a non-finite loss or gradient.
      skipped_in_a_row: int32 [].
      loss_state: what the loss carries from step to step; () for most.
    """

    step: Array
    params: Params
    opt_state: Any
    skipped: Array
    skipped_in_a_row: Array
    loss_state: Any = ()
