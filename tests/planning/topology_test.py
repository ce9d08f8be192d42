"""Names of slices, the table of chips, and what is said where libtpu is missing."""

import math
import subprocess
import sys

import jax
import pytest

from epa_jax.config import ConfigError
from epa_jax.planning import topology
from epa_jax.planning.chips import CHIPS


@pytest.mark.parametrize(
    ('name', 'slices', 'chips', 'shape'),
    [
        ('v5e-16', 1, 16, '4x4'),  # chips
        ('v5p-64', 1, 32, '2x4x4'),  # cores, two a chip
        ('v4-8', 1, 4, '2x2x1'),
        ('v6e-256', 1, 256, '16x16'),
        ('2xv5e-16', 2, 16, '4x4'),
        ('cpu-8', 1, 8, ''),
    ],
)
def test_names_are_those_of_the_cloud(name, slices, chips, shape):
    found = topology.parse(name)
    assert (found.slices, found.chips, found.shape) == (slices, chips, shape)
    assert found.total == slices * chips


def test_slices_may_be_said_apart():
    assert topology.parse('v5e-16', 2) == topology.parse('2xv5e-16')
    with pytest.raises(ConfigError, match='contradict'):
        topology.parse('2xv5e-16', 4)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('v5e-17', 'known: v5e-1, v5e-4, v5e-8'),
        ('v5p-4', 'known: v5p-8, v5p-16'),
        ('v9-8', 'expected a name such as'),
        ('v5e', 'expected a name such as'),
        ('2xcpu-4', 'one slice'),
    ],
)
def test_other_names_are_refused_with_what_there_is(name, message):
    with pytest.raises(ConfigError, match=message):
        topology.parse(name)


def test_every_shape_has_the_chips_of_its_name():
    for chip in (c for c in CHIPS.values() if c.platform == 'tpu'):
        for chips, shape in topology._SHAPES[chip.name].items():
            assert math.prod(int(n) for n in shape.split('x')) == chips
            name = f'{chip.name}-{chips * chip.cores_per_name}'
            assert topology.parse(name).chips == chips


def test_every_chip_balances_as_chips_do():
    """Operations for each byte of memory and of links: hundreds and thousands."""
    for chip in (c for c in CHIPS.values() if c.platform == 'tpu'):
        assert 100 < chip.flops / chip.hbm_bandwidth < 1000, chip.name
        assert 1000 < chip.flops / chip.ring < 10000, chip.name
        assert chip.dcn < chip.link < chip.hbm_bandwidth
        assert chip.price > 0


def test_fake_devices_are_those_of_jax():
    assert topology.devices(topology.parse('cpu-4')) == jax.devices()[:4]
    with pytest.raises(ConfigError, match='xla_force_host_platform_device_count=16'):
        topology.devices(topology.parse('cpu-16'))


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install .* -e '\.\[plan\]'"):
        topology.devices(topology.parse('v5e-16'))


def test_devices_are_asked_for_before_jax_looks():
    """In a process of its own: here JAX has its devices already."""
    code = (
        'import jax; from epa_jax.planning.topology import fake_devices; '
        "fake_devices(['--topology', 'cpu-3']); print(len(jax.devices()))"
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True,
        env={'PATH': '', 'XLA_FLAGS': ''},
    )  # fmt: skip
    assert out.stdout.split() == ['3']
