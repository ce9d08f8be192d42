"""Traces of chosen steps for TensorBoard or Perfetto, and how much memory was used."""

import contextlib
import logging
import pathlib
import resource
import sys

import jax

log = logging.getLogger(__name__)


class Profiler:
    """Traces the steps that `log.profile_steps` names, on every process."""

    def __init__(self, folder: pathlib.Path, steps: range):
        """Starts nothing yet.

        Args:
          folder: where traces go, a folder for each start.
          steps: to trace, numbered as in the metrics; empty for none.
        """
        self._folder = folder
        self._steps = steps
        self._running = False

    def begin(self, step: int) -> contextlib.AbstractContextManager:
        """Called before a step is handed to the devices; wraps that in a trace."""
        if step in self._steps and not self._running:  # the first, or where a run resumes
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        if not self._running or step not in self._steps:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation('train', step_num=step)

    def end(self, step: int) -> None:
        """Called when the devices are done with a step."""
        if self._running and step >= self._steps.stop - 1:
            self.close()

    def close(self) -> None:
        """Writes what was traced; nothing is lost when a run ends early."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info('profiler trace: %s', self._folder)


def peak_memory() -> dict[str, float]:
    """Most memory ever in use, bytes: 'host_bytes', and 'device_bytes' where it is known.

    The host's is that of this process, resident; the device's is the fullest of its own.
    """
    unit = 1 if sys.platform == 'darwin' else 1024
    out = {'host_bytes': float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s['peak_bytes_in_use'] for s in stats if 'peak_bytes_in_use' in s]
    return out | ({'device_bytes': float(max(peaks))} if peaks else {})
