"""Samples responses from a policy."""

import collections
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.evals.sampling import Sampling, Values, choose
from epa_jax.models import decode, transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Array, Params

STRIDE = 32  # prompt and response lengths are rounded up to 32, 64, 128, ...
ROWS = 256  # most rows of a batch
CHECK = 32  # new tokens between two looks at the text

# tokens of a response -> how many of them it keeps, or None to go on
Stop = Callable[[np.ndarray], int | None]


def sample(
    params: Params,
    spec: ModelSpec,
    compute: transformer.Compute,
    prompts: Sequence[np.ndarray],
    sampling: Sampling,
    *,
    key: jax.Array,
    draws: Sequence[int] | None = None,
    stop: Stop | None = None,
    mesh: Mesh | None = None,
    rows: int = ROWS,
) -> list[np.ndarray]:
    """One response to each prompt.

    The random numbers of a response follow from `key` and its draw alone, so neither the
    other prompts nor their order nor padding change it (but for rounding, which can only
    matter where two tokens tie).

    Args:
      params: as `transformer.abstract_params` describes them.
      spec: architecture.
      compute: dtype and back end.
      prompts: arrays of int token ids, none empty; the beginning of sequence included.
      sampling: how to draw.
      key: random key.
      draws: a number for each prompt; equal prompts get independent responses by
        different numbers. Its place in `prompts` unless given.
      stop: looks at a response now and then and may end it, where it says.
      mesh: where the parameters live; None is one device.
      rows: most rows computed together on each batch device.

    Returns:
      int32 arrays in the order of `prompts`; the last token is one of `stop_ids` unless
      the response was ended otherwise.

    Raises:
      ConfigError: a prompt and its response are longer than the model reads.
    """
    _check_lengths(prompts, sampling, spec)
    numbers = np.arange(len(prompts)) if draws is None else np.array(draws)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    ways = 1 if mesh is None else sharding.batch_devices(mesh)
    rows = max(min(rows, -(-len(prompts) // ways)), 1) * ways
    sampler = _Sampler(params, spec, compute, sampling, key, stop, mesh)
    for start in range(0, len(prompts), rows):
        members = order[start : start + rows]
        padded = members + members[:1] * (rows - len(members))  # one shape for all
        found = sampler.respond([prompts[i] for i in padded], numbers[padded])
        for i, response in zip(members, found, strict=False):
            out[i] = response
    return out


def draws_of(ids: Sequence[np.ndarray]) -> list[int]:
    """A number for each response, from its prompt and how often that came before.

    So a response depends on neither the order nor the company of the prompts.
    """
    seen: collections.Counter[bytes] = collections.Counter()
    out = []
    for tokens in ids:
        text = tokens.astype(np.int32).tobytes()
        digest = hashlib.sha256(text + seen[text].to_bytes(8, 'little')).digest()
        out.append(int.from_bytes(digest[:4], 'little'))
        seen[text] += 1
    return out


def _check_lengths(
    prompts: Sequence[np.ndarray], sampling: Sampling, spec: ModelSpec
) -> None:
    for i, prompt in enumerate(prompts):
        if len(prompt) + sampling.max_new_tokens > spec.max_positions:
            raise ConfigError(
                f'prompt {i} has {len(prompt)} tokens; with max_new_tokens='
                f'{sampling.max_new_tokens} that is more than the {spec.max_positions} the '
                'model reads'
            )


class _Rows(NamedTuple):
    """Rows that grow together.

    Attributes:
      tokens: int32 [B, T], prompts on the left of one place, responses on its right.
      ends: int32 [B], place after the last token of each row.
      is_open: bool [B]; the row has not ended.
      chosen: int32 [B], the tokens for `place`.
      cache: of the tokens before `place`.
      place: int32 [], of the next token.
    """

    tokens: jax.Array
    ends: jax.Array
    is_open: jax.Array
    chosen: jax.Array
    cache: decode.Cache
    place: jax.Array


class _Fixed(NamedTuple):
    """What stays while rows grow.

    Attributes:
      starts: int32 [B], place of the first token of each prompt.
      draws: uint32 [B], of the random numbers of each row.
      key: random key of all rows.
      first: int32 [], place of the first new token.
      last: int32 [], place after the last one possible.
      stop_ids: int32 [S].
      values: of the sampling.
    """

    starts: Array
    draws: Array
    key: jax.Array
    first: Array
    last: Array
    stop_ids: Array
    values: Values


class _Sampler(NamedTuple):
    """Everything but the prompts."""

    params: Params
    spec: ModelSpec
    compute: transformer.Compute
    sampling: Sampling
    key: jax.Array
    stop: Stop | None
    mesh: Mesh | None

    def respond(self, prompts: Sequence[np.ndarray], draws: np.ndarray) -> list[np.ndarray]:
        """Responses of one batch."""
        width = _bucket(max(len(prompt) for prompt in prompts))
        room = _bucket(self.sampling.max_new_tokens)
        tokens = np.zeros((len(prompts), width), np.int32)
        starts = np.array([width - len(prompt) for prompt in prompts], np.int32)
        for b, prompt in enumerate(prompts):
            tokens[b, starts[b] :] = prompt
        tokens, starts, draws = self._placed((tokens, starts, draws.astype(np.uint32)))
        fixed = _Fixed(
            starts,
            draws,
            self.key,
            np.int32(width),
            np.int32(width + self.sampling.max_new_tokens),
            np.array(self.sampling.stop_ids, np.int32),
            Values.of(self.sampling),
        )
        static = {
            'spec': self.spec,
            'compute': self.compute,
            'truncates': self.sampling.truncates,
        }
        grown = _begin(self.params, tokens, fixed, length=width + room, **static)
        return self._finish(grown, fixed, static)

    def _placed(self, arrays: tuple) -> tuple:
        if self.mesh is None:
            return arrays
        where = sharding.rows(self.mesh)
        return tuple(jax.device_put(x, where) for x in arrays)

    def _finish(self, grown: _Rows, fixed: _Fixed, static: dict) -> list[np.ndarray]:
        """Grows rows to their ends, which `stop` may bring nearer."""
        width, last = int(fixed.first), int(fixed.last)
        stride = CHECK if self.stop else last - width
        kept: dict[int, int] = {}
        for until in range(width + stride, last + stride, stride):
            limit = np.int32(min(until, last))
            grown = _grow(self.params, grown, fixed, limit, **static)
            tokens, ends, is_open = self._fetched((grown.tokens, grown.ends, grown.is_open))
            rows = [row[width:end] for row, end in zip(tokens, ends, strict=True)]
            if self.stop:
                for b in (b for b in range(len(rows)) if b not in kept):
                    size = self.stop(rows[b])
                    if size is not None:
                        kept[b] = size
                closed = np.isin(np.arange(len(rows)), list(kept))
                is_open = is_open & ~closed
                (now,) = self._placed((is_open,))
                grown = grown._replace(is_open=now)
            if not is_open.any():
                break
        return [row[: kept.get(b, len(row))] for b, row in enumerate(rows)]

    def _fetched(self, arrays: tuple) -> tuple:
        """Whole arrays on the host, of every process."""
        if self.mesh is not None and jax.process_count() > 1:
            whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(self.mesh))
            arrays = whole(arrays)
        return jax.device_get(arrays)


def _bucket(size: int) -> int:
    """The next of 32, 64, 128, ..."""
    return max(STRIDE, 1 << (size - 1).bit_length())


@functools.partial(jax.jit, static_argnames=('length', 'spec', 'compute', 'truncates'))
def _begin(
    params: Params,
    tokens_BP: jax.Array,
    fixed: _Fixed,
    *,
    length: int,
    spec: ModelSpec,
    compute: transformer.Compute,
    truncates: bool,
) -> _Rows:
    """Rows with their prompts read and the first tokens of their responses chosen."""
    batch, width = tokens_BP.shape
    logits, cache = decode.read(
        params, tokens_BP, fixed.starts, length, spec=spec, compute=compute
    )
    return _Rows(
        tokens=jnp.pad(tokens_BP, ((0, 0), (0, length - width))),
        ends=jnp.full(batch, width, jnp.int32),
        is_open=jnp.ones(batch, bool),
        chosen=_chosen(logits, fixed, fixed.first, truncates),
        cache=cache,
        place=jnp.asarray(width, jnp.int32),
    )


def _chosen(
    logits_BV: jax.Array, fixed: _Fixed, place: jax.Array, truncates: bool
) -> jax.Array:
    """Tokens for a place; their random numbers follow from how many came before."""

    def key_of(draw: jax.Array) -> jax.Array:
        own = jax.random.fold_in(fixed.key, draw)
        return jax.random.fold_in(own, place - fixed.first)

    keys = jax.vmap(key_of)(fixed.draws)
    return choose(logits_BV, keys, fixed.values, truncates=truncates)


@functools.partial(
    jax.jit, static_argnames=('spec', 'compute', 'truncates'), donate_argnums=1
)
def _grow(
    params: Params,
    rows: _Rows,
    fixed: _Fixed,
    limit: jax.Array,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
    truncates: bool,
) -> _Rows:
    """Writes tokens until `limit`, or until all rows have ended."""

    def step(rows: _Rows) -> _Rows:
        place = rows.place
        tokens = jnp.where(rows.is_open, rows.chosen, rows.tokens[:, place])
        ended = jnp.isin(tokens, fixed.stop_ids) | (place + 1 >= fixed.last)
        logits, cache = decode.next_logits(
            params, rows.cache, tokens, place, fixed.starts, spec=spec, compute=compute
        )
        return _Rows(
            tokens=rows.tokens.at[:, place].set(tokens),
            ends=rows.ends + rows.is_open,
            is_open=rows.is_open & ~ended,
            chosen=_chosen(logits, fixed, place + 1, truncates),
            cache=cache,
            place=place + 1,
        )

    def goes_on(rows: _Rows) -> jax.Array:
        return jnp.any(rows.is_open) & (rows.place < limit)

    return jax.lax.while_loop(goes_on, step, rows)
