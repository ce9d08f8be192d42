"""Other settings of the same run on the same machine: which fit, and which is fastest."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from epa_jax.config import ConfigError
from epa_jax.planning.topology import Topology
from epa_jax.schema import MeshConfig, RunConfig

log = logging.getLogger(__name__)

REMAT = ('full', 'dots', 'none')  # from least memory to most
ROWS = (1, 2, 4)  # for each device that holds rows
MAX_TENSOR = 8

Plan = Mapping[str, Any]
Planner = Callable[[RunConfig], Plan]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One point of a sweep.

    Attributes:
      mesh: sizes of the mesh.
      rows: of a micro-batch, over all devices.
      remat: as in `schema.ModelConfig`.
    """

    mesh: MeshConfig
    rows: int
    remat: str

    @property
    def flags(self) -> str:
        """As on the command line."""
        mesh = self.mesh
        return (
            f'--config.mesh.data={mesh.data} --config.mesh.fsdp={mesh.fsdp} '
            f'--config.mesh.tensor={mesh.tensor} --config.batch.rows={self.rows} '
            f'--config.model.remat={self.remat}'
        )

    def of(self, run: RunConfig) -> RunConfig:
        """The run with it."""
        return dataclasses.replace(
            run,
            mesh=self.mesh,
            batch=dataclasses.replace(run.batch, rows=self.rows),
            model=dataclasses.replace(run.model, remat=self.remat),
        )


def meshes(topology: Topology) -> Iterator[MeshConfig]:
    """Meshes worth trying: parameters split over a whole slice, and tensor axes."""
    tensor = 1
    while tensor <= min(MAX_TENSOR, topology.chips):
        yield MeshConfig(topology.slices, topology.chips // tensor, tensor)
        if topology.slices == 1 and topology.chips // tensor >= 8:
            yield MeshConfig(2, topology.chips // tensor // 2, tensor)
        tensor *= 2


def settings(run: RunConfig, topology: Topology, planner: Planner) -> list[dict[str, Any]]:
    """Plans of every setting, best first; those that cannot fit are not compiled.

    A setting needs more memory than one with the same mesh, and no more rows or fewer kept
    activations. So what follows one that does not fit is not tried.

    Args:
      run: the configuration.
      topology: the machine.
      planner: makes the plan of a run.
    """
    out = []
    for mesh in meshes(topology):
        too_much: list[tuple[int, int]] = []
        for rows, remat in itertools.product(ROWS, REMAT):
            here = (rows, REMAT.index(remat))
            if any(r <= here[0] and k <= here[1] for r, k in too_much):
                continue
            setting = Setting(mesh, rows * mesh.data * mesh.fsdp, remat)
            row = _try(run, setting, planner)
            if row.get('fits') is False:
                too_much.append(here)
            out.append(row)
            if 'refused' in row:
                break
    return sorted(out, key=lambda row: (not row.get('fits', True), -row.get('speed', 0.0)))


def _try(run: RunConfig, setting: Setting, planner: Planner) -> dict[str, Any]:
    row: dict[str, Any] = {'flags': setting.flags}
    try:
        plan = planner(setting.of(run))
    except ConfigError as error:
        log.info('%s: %s', setting.flags, error)
        return row | {'fits': False, 'refused': str(error)}
    return row | {
        'fits': plan['memory']['fits'],
        'needed': plan['memory']['needed'],
        'speed': plan['cost']['tokens_per_second'],
        'step_seconds': plan['cost']['step_seconds'],
        'mfu': plan['cost']['mfu'],
        'dollars': plan['cost']['dollars'],
        'binds': plan['roofline']['binds'],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The sweep as text, best first."""
    lines = ['   GB  fits    tokens/s  s/step    MFU  US dollars  binds         settings']
    for row in rows:
        if 'refused' in row:
            lines.append(f'    -  no      {row["refused"]}')
            continue
        word = {True: 'yes', False: 'no', None: '?'}[row['fits']]
        if row['fits'] is False:
            lines.append(f'{row["needed"] / 1e9:5.1f}  {word:4}  {"":46}{row["flags"]}')
            continue
        lines.append(
            f'{row["needed"] / 1e9:5.1f}  {word:4} {row["speed"]:11,.0f} '
            f'{row["step_seconds"]:7.2f} {row["mfu"]:6.1%} {row["dollars"]:11,.0f}  '
            f'{row["binds"]:12}  {row["flags"]}'
        )
    best = next((row for row in rows if row['fits'] is not False), None)
    end = f'best: {best["flags"]}' if best else 'none of these fits; see --config.lora.rank'
    return '\n'.join([*lines, end])


def changes(run: RunConfig, topology: Topology) -> Iterator[tuple[str, RunConfig]]:
    """Ways to need less memory, mildest first, each on top of those before it."""
    replace = dataclasses.replace
    ways = topology.total // max(run.mesh.tensor, 1)
    if run.model.remat != 'full':
        run = replace(run, model=replace(run.model, remat='full'))
        yield '--config.model.remat=full', run
    if run.batch.rows > ways:
        run = replace(run, batch=replace(run.batch, rows=0))
        yield '--config.batch.rows=0', run
    if run.mesh.data > topology.slices or run.mesh.data == -1:
        mesh = replace(run.mesh, data=topology.slices, fsdp=-1)
        run = replace(run, mesh=mesh)
        yield f'--config.mesh.data={topology.slices} --config.mesh.fsdp=-1', run
    if run.reference.mode == 'in_step':
        run = replace(run, reference=replace(run.reference, mode='cached'))
        yield '--config.reference.mode=cached', run
    if run.optim.name == 'adamw' and run.optim.mu_dtype == 'float32':
        run = replace(run, optim=replace(run.optim, mu_dtype='bfloat16'))
        yield '--config.optim.mu_dtype=bfloat16', run
    if run.optim.name != 'adafactor':
        run = replace(run, optim=replace(run.optim, name='adafactor'))
        yield '--config.optim.name=adafactor', run
    if run.lora.rank == 0:
        lora = replace(run.lora, rank=16)
        run = replace(run, lora=lora, model=replace(run.model, param_dtype='bfloat16'))
        yield '--config.lora.rank=16 --config.model.param_dtype=bfloat16', run


def remedies(run: RunConfig, topology: Topology, planner: Planner) -> str:
    """The mildest settings with which a run fits, compiled; or that none was found."""
    flags: list[str] = []
    for flag, changed in changes(run, topology):
        flags.append(flag)
        try:
            plan = planner(changed)
        except ConfigError as error:
            log.info('%s: %s', flag, error)
            continue
        if plan['memory']['fits']:
            needed = plan['memory']['needed'] / 1e9
            return f'It fits ({needed:.2f} GB) with {" ".join(flags)}'
    return 'It fits with none of the settings tried: take a larger slice'
