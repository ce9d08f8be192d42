"""The attention kernels compiled for TPUs that are not here: needs libtpu, no TPU."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from epa_jax import sharding
from epa_jax.models import attention, mask
from epa_jax.planning.topology import devices, parse
from epa_jax.schema import MeshConfig

pytest.importorskip('libtpu', reason='needs libtpu: make tpu_compile')
pytestmark = pytest.mark.tpu_compile
LENGTH = 2048
KERNELS = {
    'auto': ('shared_prompt_attention', 'shared_prompt_dq', 'shared_prompt_dkv'),
    'splash': ('splash_mha_fwd', 'splash_mha_dq', 'splash_mha_dkv'),
    'xla': (),
}


@pytest.mark.parametrize(
    ('topology', 'backend'),
    [
        ('v5e-8', 'auto'),
        ('v5e-8', 'splash'),
        ('v5e-8', 'xla'),
        ('v5p-8', 'auto'),
        ('v5p-8', 'splash'),
        ('v6e-8', 'auto'),
        ('v6e-8', 'splash'),
    ],
)
def test_forward_and_backward_compile_without_an_array_of_a_row_squared(topology, backend):
    """Two rows a chip, 32 query heads on 8 key heads of width 128, over two chips each."""
    mesh = sharding.make_mesh(
        MeshConfig(data=1, fsdp=-1, tensor=2), devices(parse(topology))
    )
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
    text = program.as_text()
    for kernel in KERNELS[backend]:
        assert kernel in text, kernel
    squared = set(re.findall(rf'\w+\[[\d,]*\b{LENGTH},{LENGTH}\b[\d,]*\]', text))
    assert bool(squared) == (backend == 'xla'), squared
