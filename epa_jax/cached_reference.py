"""The reference's log-probs for a whole run, computed before it starts or found again."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from epa_jax import reference, sharding, storage
from epa_jax.data.pipeline import Pipeline
from epa_jax.schema import RunConfig
from epa_jax.train_step import Objective
from epa_jax.types import PackedBatch, Params, TokenGroup

log = logging.getLogger(__name__)

TELL_SECONDS = 20.0  # between lines of progress


@dataclasses.dataclass(frozen=True)
class CachedReference:
    """A reference policy that is only needed until its log-probs are known.

    Attributes:
      run: the configuration.
      objective: computes response tables.
      params: of the reference.
      mesh: the devices.
    """

    run: RunConfig
    objective: Objective
    params: Params
    mesh: Mesh

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
            # machines need not share a disk: the first process reads for all
            logps = np.zeros(shape, np.float32)
            if jax.process_index() == 0:
                logps = reference.load(path, shape, made_from)
            logps = np.asarray(multihost_utils.broadcast_one_to_all(logps))
            log.info('reference log-probs of %d prompts: reused %s', len(groups), path)
        else:
            logps = self.compute(pipeline, groups)
            if jax.process_index() == 0:
                reference.save(path, logps, made_from)
            log.info('reference log-probs of %d prompts: saved %s', len(groups), path)
        keys = [group.key for group in groups]
        by_key = np.full((max(keys) + 1, shape[1]), np.nan, np.float32)
        by_key[keys] = logps
        return dataclasses.replace(pipeline, ref_logps=by_key)

    def compute(self, pipeline: Pipeline, groups: Sequence[TokenGroup]) -> np.ndarray:
        """Log-probs of the responses of each group: float32 [groups, K], 0 at PAD."""
        everywhere = sharding.replicated(self.mesh)
        logps_of = jax.jit(self._logps, out_shardings=everywhere)
        place_of = {group.key: i for i, group in enumerate(groups)}
        out = np.full((len(groups), pipeline.layout.responses), np.nan, np.float32)
        told, done = time.monotonic(), 0
        for batch in pipeline.batches(groups):
            placed = sharding.place_batch(self.mesh, batch)
            keys, logps = jax.device_get(logps_of(self.params, placed))
            real = keys >= 0
            out[[place_of[key] for key in keys[real].tolist()]] = logps[real]
            done += int(real.sum())
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                log.info('reference log-probs: %d of %d prompts', done, len(groups))
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


def _of_first(answer: Callable[[], bool]) -> bool:
    """What the first process answers, in every process."""
    mine = jax.process_index() == 0 and answer()
    return bool(multihost_utils.broadcast_one_to_all(np.array(mine)))
