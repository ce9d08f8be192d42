"""The reference's log-probs for a whole run, computed before it starts or found again."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from epa_jax import reference, sharding, storage
from epa_jax.data.pipeline import CHUNK, Pipeline
from epa_jax.schema import RunConfig
from epa_jax.train_step import Objective
from epa_jax.types import PackedBatch, Params, TokenGroup

log = logging.getLogger(__name__)

TELL_SECONDS = 20.0  # between lines of progress
KEEP_SECONDS = 60.0  # between saves of what is known so far


@dataclasses.dataclass(frozen=True)
class CachedReference:
    """A reference policy that is only needed until its log-probs are known.

    Attributes:
      run: the configuration.
      objective: computes response tables.
      params: of the reference.
      mesh: the devices.
      alive: called after every batch, by all processes; raises `SystemExit` to stop.
    """

    run: RunConfig
    objective: Objective
    params: Params
    mesh: Mesh
    alive: Callable[[], None] = lambda: None

    def attach(
        self, pipeline: Pipeline, visits: Sequence[tuple[int, int]], cache_file: str = ''
    ) -> Pipeline:
        """The pipeline with reference log-probs for these visits.

        Args:
          pipeline: its batches.
          visits: distinct visits that it will make, from `Visits`.
          cache_file: the file to use; '' finds or makes one in `reference.cache_dir`.

        Raises:
          reference.StaleCacheError: the file was made from anything else.
        """
        groups = [pipeline.group(visit) for visit in visits]
        made_from = reference.identity(
            self.params,
            self.run.model.compute_dtype,
            self.objective.loss.tail_weight,
            groups,
        )
        path = reference.cache_path(self.run.reference.cache_dir, made_from)
        path = storage.path(cache_file) if cache_file else path
        shape = (len(groups), pipeline.layout.responses)
        if cache_file or _of_first(path.exists):
            logps = _read_by_first(shape, lambda: reference.load(path, shape, made_from))
            log.info('reference log-probs of %d prompts: reused %s', len(groups), path)
        else:
            kept = _Kept(path, made_from)
            known = _read_by_first(shape, lambda: kept.load(shape))
            logps = self.compute(pipeline, groups, known, kept.save)
            kept.finish(logps)
            log.info('reference log-probs of %d prompts: saved %s', len(groups), path)
        keys = [group.key for group in groups]
        by_key = np.full((max(keys) + 1, shape[1]), np.nan, np.float32)
        by_key[keys] = logps
        return dataclasses.replace(pipeline, ref_logps=by_key)

    def compute(
        self,
        pipeline: Pipeline,
        groups: Sequence[TokenGroup],
        known: np.ndarray,
        keep: Callable[[np.ndarray], None] = lambda logps: None,
    ) -> np.ndarray:
        """Log-probs of the responses of each group: float32 [groups, K], 0 at PAD.

        Args:
          pipeline: packs batches.
          groups: prompts with their responses.
          known: of an earlier start, NaN where it has none; the same in every process.
          keep: called now and then, and on the way out, with what is known.

        Raises:
          ValueError: the reference gives NaN.
        """
        everywhere = sharding.replicated(self.mesh)
        logps_of = jax.jit(self._logps, out_shardings=everywhere)
        place_of = {group.key: i for i, group in enumerate(groups)}
        out = known.copy()
        told = kept = time.monotonic()
        try:
            for batch in _unknown(pipeline, groups, known):
                placed = sharding.place_batch(self.mesh, batch)
                keys, logps = jax.device_get(logps_of(self.params, placed))
                real = keys >= 0
                out[[place_of[key] for key in keys[real].tolist()]] = logps[real]
                self.alive()
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    log.info('reference log-probs: %d of %d prompts', _count(out), len(out))
                if time.monotonic() - kept > KEEP_SECONDS:
                    keep(out)
                    kept = time.monotonic()
        except (SystemExit, KeyboardInterrupt):  # asked to stop
            keep(out)
            raise
        if np.isnan(out).any():
            raise ValueError(
                'the reference gives log-probs that are not numbers: '
                f'{np.isnan(out).any(axis=1).sum()} of {len(groups)} prompts; check the '
                'weights, or use model.compute_dtype=float32'
            )
        return out

    def _logps(self, params: Params, batch: PackedBatch) -> tuple[jax.Array, jax.Array]:
        """Keys [N] and log-probs [N, K] of a micro-batch."""
        logps = self.objective.policy_table(params, batch).logps
        return batch.keys.reshape(-1), logps


class _Kept:
    """The file of a reference's log-probs, and the one beside it until all are known."""

    def __init__(self, path: storage.AnyPath, made_from: dict[str, str]):
        self._path, self._made_from = path, made_from
        self._unfinished = reference.unfinished(path)

    def load(self, shape: tuple[int, int]) -> np.ndarray:
        """What an earlier start knew; NaN elsewhere."""
        if self._unfinished.exists():
            try:
                return reference.load(self._unfinished, shape, self._made_from)
            except reference.StaleCacheError as error:
                log.warning('reference log-probs: from the beginning, %s', error)
        return np.full(shape, np.nan, np.float32)

    def save(self, logps: np.ndarray) -> None:
        """Keeps what is known, unless that is nothing; the first process does."""
        if jax.process_index() == 0 and _count(logps):
            reference.save(self._unfinished, logps, self._made_from)

    def finish(self, logps: np.ndarray) -> None:
        """Saves all of it; the first process does."""
        if jax.process_index() == 0:
            reference.save(self._path, logps, self._made_from)
            self._unfinished.unlink(missing_ok=True)


def _unknown(
    pipeline: Pipeline, groups: Sequence[TokenGroup], known: np.ndarray
) -> Iterator[PackedBatch]:
    """Batches of what is not known: of whole chunks, since these are packed as ever."""
    pipeline = pipeline.settled(groups)
    for start in range(0, len(groups), CHUNK):
        if np.isnan(known[start : start + CHUNK]).any():
            yield from pipeline.batches(groups[start : start + CHUNK])


def _count(logps: np.ndarray) -> int:
    """Prompts whose log-probs are known."""
    return int(np.sum(~np.isnan(logps).any(axis=1)))


def _read_by_first(shape: tuple[int, int], read: Callable[[], np.ndarray]) -> np.ndarray:
    """What the first process reads, in all: machines need not share a disk."""
    mine = read() if jax.process_index() == 0 else np.zeros(shape, np.float32)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine))


def _of_first(answer: Callable[[], bool]) -> bool:
    """What the first process answers, in every process."""
    mine = jax.process_index() == 0 and answer()
    return bool(multihost_utils.broadcast_one_to_all(np.array(mine)))
