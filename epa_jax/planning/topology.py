"""Names of TPU slices, as Cloud gives them, to devices to compile for."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from epa_jax.config import ConfigError
from epa_jax.planning.chips import CHIPS, Chip

# chips of a slice -> its shape
_FLAT = {
    1: '1x1', 4: '2x2', 8: '2x4', 16: '4x4', 32: '4x8', 64: '8x8', 128: '8x16',
    256: '16x16',
}  # fmt: skip
_CUBE = {
    4: '2x2x1', 8: '2x2x2', 16: '2x2x4', 32: '2x4x4', 64: '4x4x4', 128: '4x4x8',
    256: '4x8x8', 512: '8x8x8', 1024: '8x8x16', 2048: '8x16x16',
}  # fmt: skip
_SHAPES = {'v4': _CUBE, 'v5e': _FLAT, 'v5p': _CUBE, 'v6e': _FLAT}
_NAME = re.compile(r'(?:(?P<slices>\d+)x)?(?P<chip>[a-z0-9]+)-(?P<size>\d+)')


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind.

    Attributes:
      name: 'v5e-16', '2xv5e-16', 'cpu-8'.
      chip: of which kind.
      slices: how many.
      chips: in each slice.
      shape: of a slice, such as '4x4'; '' on a CPU.
    """

    name: str
    chip: Chip
    slices: int
    chips: int
    shape: str

    @property
    def total(self) -> int:
        """Chips of all slices."""
        return self.slices * self.chips


def parse(name: str, slices: int = 0) -> Topology:
    """The topology of a name.

    Args:
      name: CHIP-N or SLICESxCHIP-N. N counts TensorCores for v4 and v5p, of which a chip
        has two, and chips for v5e and v6e, as in Cloud's names.
      slices: how many, where the name does not say; 0 is one.

    Raises:
      ConfigError: an unknown chip or size, or two numbers of slices.
    """
    match = _NAME.fullmatch(name)
    if match is None or match['chip'] not in CHIPS:
        raise ConfigError(
            f'--topology={name}: expected a name such as v5e-16, v5p-64, 2xv5e-16 or '
            f'cpu-8; chips: {", ".join(CHIPS)}'
        )
    named = int(match['slices'] or 0)
    if named and slices and named != slices:
        raise ConfigError(f'--topology={name} and --slices={slices} contradict each other')
    chip, size, count = CHIPS[match['chip']], int(match['size']), named or slices or 1
    if chip.platform == 'cpu':
        if count > 1 or size < 1:
            raise ConfigError(f'--topology={name}: a CPU has one slice of 1 device or more')
        return Topology(name, chip, 1, size, '')
    sizes = {chip.cores_per_name * n: shape for n, shape in _SHAPES[chip.name].items()}
    if size not in sizes:
        known = ', '.join(f'{chip.name}-{n}' for n in sizes)
        raise ConfigError(f'--topology={name}: no such size of {chip.name}; known: {known}')
    full = f'{count}x{chip.name}-{size}' if count > 1 else f'{chip.name}-{size}'
    return Topology(full, chip, count, size // chip.cores_per_name, sizes[size])


def fake_devices(argv: Sequence[str]) -> None:
    """Asks JAX for as many CPU devices as the topology has, and for nothing else.

    Has to be done before JAX looks for devices, so before flags are read.
    """
    jax.config.update('jax_platforms', 'cpu')
    text = ' '.join(argv).replace('--topology ', '--topology=')
    found = re.search(r'--topology=cpu-(\d+)', text)
    if found:
        jax.config.update('jax_num_cpu_devices', int(found[1]))


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for, one a chip; none of them can run anything.

    On a CPU they are real, and as many as XLA_FLAGS asked for before JAX started.

    Raises:
      ConfigError: libtpu is not installed, or too few CPU devices.
    """
    if topology.chip.platform == 'cpu':
        found = jax.devices('cpu')
        if len(found) < topology.total:
            raise ConfigError(
                f'--topology={topology.name}: JAX was started with {len(found)} CPU '
                f'devices; set XLA_FLAGS=--xla_force_host_platform_device_count='
                f'{topology.total} before Python starts'
            )
        return found[: topology.total]
    if importlib.util.find_spec('libtpu') is None:
        raise ConfigError(
            f'--topology={topology.name}: libtpu, which holds the compiler for TPUs, is '
            "not installed; pip install -c constraints.txt -e '.[plan]' (it needs no TPU, "
            'only Linux on x86-64), or plan for fake devices with --topology=cpu-8'
        )
    return list(_describe(topology).devices)


def _describe(topology: Topology) -> Any:
    from jax.experimental import topologies  # needs libtpu only once it is called

    # libtpu looks for a TPU and its metadata server unless told that there is none
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    kind, size = topology.name.rpartition('x')[2].split('-')
    kind = {'v5e': 'v5litepod'}.get(kind, kind)
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', f'{kind}-{size}')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    # its lock keeps two programs from one TPU; compilers may run side by side
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    more: dict[str, Any] = {}
    if topology.slices > 1:
        more['num_slices'] = topology.slices
    if topology.shape == '1x1':
        more['chips_per_host_bounds'] = (1, 1, 1)
    if topology.chip.name == 'v4':
        more['chip_config_name'] = 'megacore'  # one device a chip, as JAX on a v4 has
    return topologies.get_topology_desc(
        f'{topology.chip.name}:{topology.shape}', platform='tpu', **more
    )
