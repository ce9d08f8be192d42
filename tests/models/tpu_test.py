"""The attention kernels compiled ahead of time for TPUs, without one.

Needs libtpu (`pip install 'jax[tpu]'`), which compiles for chips that are not there.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding

from epa_jax import sharding
from epa_jax.models import attention, mask
from epa_jax.schema import MeshConfig

LENGTH = 2048
KERNELS = {
    'auto': ('shared_prompt_attention', 'shared_prompt_dq', 'shared_prompt_dkv'),
    'splash': ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'),
    'xla': (),
}


@pytest.fixture
def describe(monkeypatch):
    pytest.importorskip('libtpu', reason='needs libtpu: pip install jax[tpu]')
    # another process may be compiling too; no chip is claimed
    monkeypatch.setenv('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    monkeypatch.setenv('TPU_SKIP_MDS_QUERY', '1')
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'localhost')
    return lambda name: topologies.get_topology_desc(name, 'tpu').devices


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ('topology', 'backend'),
    [
        ('v5e:2x4', 'auto'),
        ('v5e:2x4', 'splash'),
        ('v5e:2x4', 'xla'),
        ('v5p:2x2x1', 'auto'),
        ('v5p:2x2x1', 'splash'),
        ('v6e:2x4', 'auto'),
        ('v6e:2x4', 'splash'),
    ],
)
def test_forward_and_backward_compile_without_an_array_of_a_row_squared(
    describe, topology, backend
):
    """Two rows a chip, 32 query heads on 8 key heads of width 128, over two chips each."""
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=2), describe(topology))
    rows = 2 * sharding.batch_devices(mesh)

    def array(dtype, *axes, **sizes):
        where = NamedSharding(mesh, sharding.partition(axes))
        shape = (rows, LENGTH, *sizes.values())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    q = array(jnp.bfloat16, 'batch', None, 'heads', None, n=32, h=128)
    k = array(jnp.bfloat16, 'batch', None, 'kv_heads', None, m=8, h=128)
    ints = array(jnp.int32, 'batch', None)
    tokens = mask.Tokens(ints, ints, None if backend == 'splash' else ints)

    def run(dout, q, k, v, tokens):
        def attend(*qkv):
            how = {'backend': backend, 'mesh': mesh}
            return attention.attend(*qkv, tokens, sliding_window=1024, **how)

        out, pull = jax.vjp(attend, q, k, v)
        return out, pull(dout)

    program = jax.jit(run).lower(q, q, k, k, tokens).compile()
    text, memory = program.as_text(), program.memory_analysis()
    for kernel in KERNELS[backend]:
        assert kernel in text, kernel
    squared = set(re.findall(rf'\w+\[[\d,]*\b{LENGTH},{LENGTH}\b[\d,]*\]', text))
    assert bool(squared) == (backend == 'xla'), squared
    print(topology, backend, memory.temp_size_in_bytes / 2**20, 'MiB of temporaries')
