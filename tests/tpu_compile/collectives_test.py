"""What libtpu makes of a sum of which each chip keeps a share, see docs/collectives.md."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from epa_jax import sharding
from epa_jax.planning import hlo
from epa_jax.planning.topology import devices, parse
from epa_jax.schema import MeshConfig

pytest.importorskip('libtpu', reason='needs libtpu: make tpu_compile')
pytestmark = pytest.mark.tpu_compile


@pytest.mark.parametrize(
    ('name', 'data', 'kind'),
    [
        ('v5e-64', 1, 'all-reduce'),  # once it is another, that page is out of date
        ('v5e-64', 4, 'reduce-scatter'),
        ('v5e-16', 1, 'all-reduce'),
        ('v5e-32', 1, 'reduce-scatter'),
    ],
)
def test_over_how_many_chips_a_sum_is_scattered(name, data, kind):
    mesh = sharding.make_mesh(MeshConfig(data, -1, 1), devices(parse(name)))
    group = mesh.shape['fsdp']

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec('fsdp'),
        out_specs=PartitionSpec('fsdp'),
        check_vma=False,
    )
    def scattered(x):
        return jax.lax.psum_scatter(x[0] * x[0], 'fsdp', tiled=True)

    where = NamedSharding(mesh, PartitionSpec('fsdp'))
    x = jax.ShapeDtypeStruct((group, 4096, 1024), jnp.bfloat16, sharding=where)
    (found,) = hlo.collectives(jax.jit(scattered).lower(x).compile().as_text())
    assert (found.kind, found.group) == (kind, group)
    assert found.bytes == 4096 * 1024 * 2
    assert not found.overlapped
