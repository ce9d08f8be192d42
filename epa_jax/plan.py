"""Plans a run: python -m epa_jax.plan --config=experiments/X.py --topology=v5e-16."""

import json
import sys
from typing import Any

from absl import app, flags

from epa_jax.config import ConfigError, resolve
from epa_jax.planning import report
from epa_jax.planning.abstract import abstract_run
from epa_jax.planning.compiled import compile_call
from epa_jax.planning.roofline import (
    EFFICIENCY,
    chunk_length,
    cost,
    roofline,
    scored_places,
)
from epa_jax.planning.sweep import remedies, settings, table
from epa_jax.planning.topology import Topology, devices, fake_devices, parse
from epa_jax.schema import RunConfig
from epa_jax.storage import local_only
from epa_jax.train import CONFIG, run_flags

FLAGS = flags.FLAGS
flags.DEFINE_string('topology', '', 'Such as v5e-16, v5p-64, 2xv5e-16 or cpu-8.')
flags.DEFINE_integer('slices', 0, 'Slices, where the topology does not say.')
flags.DEFINE_string('json', '', 'A file to save the plan to.')
flags.DEFINE_bool('sweep', False, 'Try meshes, rows and rematerialisation.')
flags.DEFINE_float('price', None, 'US dollars for a chip and hour.', lower_bound=0)
flags.DEFINE_float(
    'efficiency', EFFICIENCY, 'Share of every peak that is assumed.', 0.01, 1.0
)


def plan(
    run: RunConfig,
    topology: Topology,
    efficiency: float = EFFICIENCY,
    price: float | None = None,
) -> dict[str, Any]:
    """Compiles a run's step for a machine and reports what it needs.

    Args:
      run: the configuration.
      topology: the machine.
      efficiency: share of every peak that is assumed.
      price: US dollars for a chip and hour; None is that of `chips.CHIPS`.

    Returns:
      The plan, see `planning.report.as_data`.

    Raises:
      ConfigError: what the configuration, the machine or this computer lacks.
    """
    planned = abstract_run(run, devices(topology))
    length = planned.work.layout.row_length
    trips = round(scored_places(planned, length) / chunk_length(planned, length))
    programs = [compile_call(call, trips, topology.slices) for call in planned.calls]
    roof = roofline(planned, programs, topology)
    costs = cost(planned, roof, topology, efficiency, price)
    return report.as_data(planned, programs, topology, roof, costs)


def main(argv: list[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    if not FLAGS.topology:
        raise ConfigError('--topology: empty; name a machine, such as v5e-16 or cpu-8')
    run, topology = resolve(CONFIG.value), parse(FLAGS.topology, FLAGS.slices)
    price = topology.chip.price if FLAGS.price is None else FLAGS.price

    def planned(run: RunConfig) -> dict[str, Any]:
        return plan(run, topology, FLAGS.efficiency, price)

    if FLAGS.sweep:
        found: Any = settings(run, topology, planned)
        print(table(found))
    else:
        found = planned(run)
        print(report.render(found, price, FLAGS.efficiency, listed=FLAGS.price is None))
        if found['memory']['fits'] is False:
            print(remedies(run, topology, planned))
    if FLAGS.json:
        path = local_only(FLAGS.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + '\n')


def run_main() -> None:
    """Shows bad input as one message."""
    fake_devices(sys.argv[1:])
    run_flags(main)


if __name__ == '__main__':
    run_main()
