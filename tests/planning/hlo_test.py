"""Collectives of programs whose collectives are known, and of lines as TPUs have them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from epa_jax.planning import hlo


@pytest.fixture(scope='module')
def found():
    """An all-gather 5 times, a reduce-scatter 5 x 3 times, an all-reduce over half once."""
    mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
    spec = PartitionSpec(('a', 'b'))

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    def program(x):
        def inner(_, x):
            wide = jnp.tile(x, (4, 1)) * x[0]
            return jax.lax.psum_scatter(wide, 'b', scatter_dimension=0, tiled=True)

        def outer(_, x):
            whole = jax.lax.all_gather(x, ('a', 'b'), tiled=True)
            x = x + jnp.sum(whole * whole, axis=0)
            return jax.lax.fori_loop(0, 3, inner, x)

        x = jax.lax.fori_loop(0, 5, outer, x)
        return x * jax.lax.psum(jnp.sin(x), 'b')

    x = jax.ShapeDtypeStruct((16, 6), jnp.float32, sharding=NamedSharding(mesh, spec))
    text = jax.jit(program).lower(x).compile().as_text()
    return {one.kind: one for one in hlo.collectives(text)}


def test_every_kind_is_found_once(found):
    assert sorted(found) == ['all-gather', 'all-reduce', 'reduce-scatter']


def test_loops_multiply(found):
    counts = {kind: one.count for kind, one in found.items()}
    assert counts == {'all-gather': 5, 'reduce-scatter': 15, 'all-reduce': 1}
    assert found['all-gather'].in_loop
    assert not found['all-reduce'].in_loop


def test_bytes_are_those_of_the_larger_side(found):
    shard = 2 * 6 * 4  # rows, columns, bytes
    assert found['all-gather'].bytes == 8 * shard
    assert found['reduce-scatter'].bytes == 4 * shard
    assert found['all-reduce'].bytes == shard


def test_rings_send_all_but_the_own_share(found):
    shard = 2 * 6 * 4
    assert found['all-gather'].sent == 5 * 7 * shard
    assert found['reduce-scatter'].sent == 15 * 3 * shard
    assert found['all-reduce'].sent == 2 * shard * 3 / 4


def program(lines, body='', condition=''):
    return (
        'HloModule m, num_partitions=8\n\n'
        f'%body (p: (u32[], f32[4])) -> (u32[], f32[4]) {{\n{body}}}\n\n'
        f'%cond (p: (u32[], f32[4])) -> pred[] {{\n{condition}}}\n\n'
        f'ENTRY %main (x: f32[4]) -> f32[4] {{\n{lines}}}\n'
    )


WHILE = '  %w = (u32[], f32[4]) while(%t), condition=%cond, body=%body\n'
BODY = (
    '  %one = u32[] constant(2)\n'
    '  %i = u32[] get-tuple-element(%p), index=0\n'
    '  %x = f32[4] get-tuple-element(%p), index=1\n'
    '  %r = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%x), channel_id=1, '
    'source_target_pairs={{0,1},{1,2},{2,3},{3,0}}\n'
    '  %next = u32[] add(%i, %one)\n'
    '  ROOT %t = (u32[], f32[4]) tuple(%next, %x)\n'
)
BOUND = '  %n = u32[] constant(8)\n'
READ = '  %i = u32[] get-tuple-element(%p), index=0\n'


def test_a_counter_may_step_by_more_than_one():
    text = program(WHILE, BODY, BOUND + READ + '  ROOT %c = pred[] compare(%i, %n)\n')
    (one,) = hlo.collectives(text)
    assert (one.kind, one.count, one.bytes) == ('collective-permute', 4, 16)
    assert one.overlapped
    assert one.sent == 4 * 16


def test_a_bound_that_is_data_is_given():
    condition = READ + '  %j = u32[] get-tuple-element(%p), index=1\n'
    text = program(WHILE, BODY, condition + '  ROOT %c = pred[] compare(%i, %j)\n')
    (one,) = hlo.collectives(text, dynamic_trips=7)
    assert one.count == 7


def test_steps_of_one_overlapped_collective_count_once():
    line = (
        '  %g{n} = bf16[64]{{0:T(8,128)}} all-gather(%x), channel_id=4, replica_groups='
        "mesh['axis_0'=8] {{'axis_0'}}, frontend_attributes={{chain_id=\"0\"}}\n"
    )
    (one,) = hlo.collectives(program(''.join(line.format(n=n) for n in range(3))))
    assert (one.bytes, one.group, one.count) == (128, 8, 1)


SCATTER = """HloModule jit_accumulate, num_partitions=64

%all-reduce-scatter.1.clone.1 (input.7: bf16[4096,14336]) -> bf16[256,14336] {
  %input.7 = bf16[4096,14336]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.15 = bf16[4096,14336]{1,0:T(8,128)(2,1)} all-reduce(%input.7), \
channel_id=11, replica_groups=[4,16]<=[64], use_global_device_ids=true, to_apply=%add
  %partition-id.15 = u32[] partition-id()
  %constant.209 = u32[] constant(0)
  ROOT %dynamic-slice.55 = bf16[256,14336]{1,0:T(8,128)(2,1)} \
dynamic-slice(%all-reduce.15, %partition-id.15, %constant.209), \
dynamic_slice_sizes={256,14336}
}

ENTRY %main (x: bf16[4096,14336]) -> bf16[256,14336] {
  %x = bf16[4096,14336]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion.132 = bf16[256,14336]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, \
calls=%all-reduce-scatter.1.clone.1
}
"""


def test_an_all_reduce_fused_with_its_slice_is_a_reduce_scatter():
    """Abridged from a step compiled for v5e-64; nothing is computed meanwhile."""
    (one,) = hlo.collectives(SCATTER)
    assert (one.kind, one.group, one.overlapped) == ('reduce-scatter', 16, False)
    whole = 4096 * 14336 * 2
    assert one.bytes == whole
    assert one.sent == whole * 15 / 16


def test_an_all_reduce_of_which_more_leaves_its_fusion_stays_one():
    (one,) = hlo.collectives(SCATTER.replace('dynamic-slice(%all', 'add(%all'))
    assert (one.kind, one.bytes) == ('all-reduce', 4096 * 14336 * 2)
    assert one.overlapped


@pytest.mark.parametrize(('axis', 'crosses'), [('data', True), ('fsdp', False)])
def test_what_leaves_a_slice_is_told(axis, crosses):
    line = (
        "  %r = f32[4] all-reduce(%x), replica_groups=mesh['data'=2,'fsdp'=4] "
        f"{{'{axis}'}}\n"
    )
    (one,) = hlo.collectives(program(line), slices=2)
    assert one.crosses is crosses


def test_tuples_add_up():
    assert hlo.array_bytes('(f32[2,3]{1,0}, /*index=1*/bf16[4], pred[])') == [24, 8, 1]
    assert np.sum(hlo.array_bytes('u32[]')) == 4
