"""How long steps take: outliers of a process, and the slowest of all processes."""

import collections
import logging
import statistics

import jax
import numpy as np
from jax.experimental import multihost_utils

WINDOW = 64  # steps that the usual time is the median of
LEAST = 8  # steps before any counts as an outlier
FACTOR = 2.0  # times the usual makes an outlier
TOLD = 1.0  # seconds that an outlier must lose for a warning, not a line of the log alone

log = logging.getLogger(__name__)


class StepTimes:
    """Watches the seconds of the steps of this process.

    Attributes:
      outliers: steps that took `FACTOR` times as long as usual, or longer.
    """

    def __init__(self) -> None:
        self.outliers = 0
        self._recent: collections.deque[float] = collections.deque(maxlen=WINDOW)

    def add(self, step: int, seconds: float) -> bool:
        """Counts a step, and logs it if it is an outlier; says whether it is.

        An outlier that loses `TOLD` seconds or more is a warning.
        """
        usual = self.usual()
        late = len(self._recent) >= LEAST and seconds >= FACTOR * usual
        if late:
            self.outliers += 1
            log.log(
                logging.WARNING if seconds - usual >= TOLD else logging.INFO,
                'step %d took %.3g s on process %d; usual are %.3g s',
                step,
                seconds,
                jax.process_index(),
                usual,
                extra={'step': step, 'step_seconds': seconds, 'usual_seconds': usual},
            )
        self._recent.append(seconds)
        return late

    def usual(self) -> float:
        """Median seconds of recent steps; 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0


def slowest(waited: float) -> tuple[int, float, float]:
    """Compares the processes; every process must call it at the same place.

    Steps of all processes end together, for they exchange their gradients. What tells
    them apart is how long each kept the others waiting for its data.

    Args:
      waited: seconds that this process spent on something that others wait for.

    Returns:
      The process with most seconds, its seconds, and the median of all processes.
    """
    if jax.process_count() == 1:
        return 0, waited, waited
    found = multihost_utils.process_allgather(np.float32(waited)).reshape(-1)
    return int(found.argmax()), float(found.max()), float(np.median(found))
