"""A step's time from what its chips can do: compute, memory, links; which one binds."""

import dataclasses
from collections.abc import Sequence

import jax

from epa_jax.planning import flops
from epa_jax.planning.abstract import AbstractRun, device_bytes
from epa_jax.planning.chips import Chip
from epa_jax.planning.compiled import Compiled
from epa_jax.planning.topology import Topology
from epa_jax.prepare import automatic_chunk

# Share of every peak that a step is assumed to reach. An assumption, not a measurement.
EFFICIENCY = 0.6


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on each resource, alone and at its peak.

    Attributes:
      compute: matrix units.
      hbm: memory of the chip.
      ici: links within a slice, for what may go on beside computation.
      exposed: links, for what computation waits for.
      dcn: network between slices.
      model_flops: of a step, all devices: what any implementation has to do.
      executed_flops: with padding and recomputation.
    """

    compute: float
    hbm: float
    ici: float
    exposed: float
    dcn: float
    model_flops: float
    executed_flops: float

    @property
    def binds(self) -> str:
        """The resource that takes longest."""
        times = {
            'compute': self.compute,
            'memory (HBM)': self.hbm,
            'links (ICI)': self.ici + self.exposed,
            'network (DCN)': self.dcn,
        }
        return max(times, key=lambda name: times[name])

    @property
    def least(self) -> float:
        """Seconds: the slowest resource, and what nothing hides."""
        return max(self.compute, self.hbm, self.ici, self.dcn) + self.exposed

    def seconds(self, efficiency: float) -> float:
        """Seconds at a share of every peak."""
        return self.least / efficiency


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run takes.

    Attributes:
      step_seconds: of a step.
      tokens_per_second: real tokens, all devices.
      mfu: model FLOPs over what the chips could do in that time.
      hours: of all steps.
      reference_hours: of the log-probs of a cached reference, before them.
      dollars: of both; 0 where chips have no price.
    """

    step_seconds: float
    tokens_per_second: float
    mfu: float
    hours: float
    reference_hours: float
    dollars: float


def roofline(
    planned: AbstractRun, programs: Sequence[Compiled], topology: Topology
) -> Roofline:
    """Of one step.

    Args:
      planned: the run.
      programs: its programs, compiled.
      topology: what they were compiled for.
    """
    chip, devices = topology.chip, topology.total
    sent = {'ici': 0.0, 'exposed': 0.0, 'dcn': 0.0}
    for program in programs:
        for collective in program.collectives:
            where = 'ici' if collective.overlapped else 'exposed'
            where = 'dcn' if collective.crosses else where
            sent[where] += program.times * collective.sent
    model, executed = step_flops(planned)
    return Roofline(
        compute=executed / devices / chip.flops,
        hbm=_traffic(planned) / chip.hbm_bandwidth,
        ici=sent['ici'] / chip.ring,
        exposed=sent['exposed'] / chip.ring,
        dcn=sent['dcn'] / chip.dcn,
        model_flops=model,
        executed_flops=executed,
    )


def step_flops(planned: AbstractRun) -> tuple[float, float]:
    """Model FLOPs of a step, and those that it executes, over all devices."""
    size, work, run = flops.sizes(planned.spec, planned.lora), planned.work, planned.run
    reference = planned.reference_in_step
    model = flops.training(size, work.tokens, work.scored, work.pairs, reference)
    executed = 0.0
    for layout, count in (
        (work.layout, work.micro_batches),
        (work.text, work.text_micro_batches),
    ):
        scored = scored_places(planned, layout.row_length)
        once = flops.executed(
            size, layout.rows, layout.row_length, scored, run.model.remat, reference
        )
        executed += count * once
        if planned.loss.needs.couples_prompts and layout is work.layout:
            pairs = layout.rows * layout.row_length * (layout.row_length + 1) / 2
            cells = layout.rows * layout.row_length
            executed += count * flops.forward(size, cells, layout.rows * scored, pairs)
    return model, executed


def chunk_length(planned: AbstractRun, row_length: int) -> int:
    """Places of a row that meet the vocabulary at once."""
    chunk = planned.run.model.logprob_chunk or automatic_chunk(planned.mesh)
    return min(chunk or row_length, row_length)


def scored_places(planned: AbstractRun, row_length: int) -> float:
    """Places of a row that meet the vocabulary, in whole chunks."""
    chunk = chunk_length(planned, row_length)
    share = planned.work.scored / planned.work.tokens
    return min(-(-share * row_length // chunk) * chunk, row_length)


def _traffic(planned: AbstractRun) -> float:
    """Bytes that a device's memory moves in a step."""
    size, work = flops.sizes(planned.spec, planned.lora), planned.work
    shape = planned.mesh.shape
    ways = shape['data'] * shape['fsdp']
    element = 2 if planned.run.model.compute_dtype == 'bfloat16' else 4
    grads = sum(
        device_bytes(leaf) // leaf.dtype.itemsize * 4
        for leaf in jax.tree.leaves(planned.state.params)
    )
    total = flops.update_bytes(device_bytes(planned.state), grads)
    for layout, count in (
        (work.layout, work.micro_batches),
        (work.text, work.text_micro_batches),
    ):
        cells = layout.rows * layout.row_length / ways
        total += count * flops.pass_bytes(
            planned.spec,
            size,
            cells,
            element,
            grads,
            shape['tensor'],
            planned.run.model.remat,
        )
    return total


def cost(
    planned: AbstractRun,
    roof: Roofline,
    topology: Topology,
    efficiency: float = EFFICIENCY,
    price: float | None = None,
) -> Cost:
    """Of the whole run.

    Args:
      planned: the run.
      roof: of its step.
      topology: the machine.
      efficiency: share of every peak that a step reaches.
      price: US dollars for a chip and hour; None is that of the table.
    """
    chip: Chip = topology.chip
    seconds = roof.seconds(efficiency)
    peak = topology.total * chip.flops
    hours = planned.work.steps * seconds / 3600
    cached = planned.run.reference.mode == 'cached' and planned.loss.needs_reference
    reference = 0.0
    if cached:  # forward alone, over every prompt that the run visits
        size, work = flops.sizes(planned.spec, planned.lora), planned.work
        once = flops.forward(size, work.tokens, work.scored, work.pairs)
        steps = work.prompts / planned.run.batch.prompts
        waste = roof.executed_flops / roof.model_flops
        reference = steps * once * waste / peak / efficiency / 3600
    price = chip.price if price is None else price
    return Cost(
        step_seconds=seconds,
        tokens_per_second=planned.work.tokens / seconds,
        mfu=roof.model_flops / seconds / peak,
        hours=hours,
        reference_hours=reference,
        dollars=(hours + reference) * topology.total * price,
    )
