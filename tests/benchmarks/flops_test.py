"""Operations counted from shapes, against the program's own products and mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import flops, task
from epa_jax.models import transformer
from epa_jax.models.mask import Tokens, visible
from tests import tiny

GROUPS = [task.Group(p, r) for p, r in tiny.random_groups(1, 5)]


def products(jaxpr) -> float:
    """Operations of every dot_general, those of a scanned body once for each turn."""
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [getattr(v, 'jaxpr', v) for v in eqn.params.values()]
        inner = [sub for sub in inner if hasattr(sub, 'eqns')]
        turns = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
        total += turns * sum(products(sub) for sub in inner)
        if eqn.primitive.name == 'dot_general':
            (left, _), _ = eqn.params['dimension_numbers']
            shape = eqn.invars[0].aval.shape
            summed = np.prod([shape[axis] for axis in left])
            total += 2 * summed * np.prod(eqn.outvars[0].aval.shape)
    return float(total)


@pytest.mark.parametrize('tied', [True, False])
def test_forward_counts_the_program_s_products(tied):
    spec = dataclasses.replace(tiny.SPEC, tie_embeddings=tied)
    one = jnp.ones((1, 1), jnp.int32)

    def logits(params):
        hidden = transformer.hidden_states(
            params, one, one, one, one, spec=spec, compute=transformer.Compute()
        )
        return jnp.einsum('btd,vd->btv', hidden, transformer.head_weights(params))

    params = transformer.abstract_params(spec, jnp.float32)
    counted = products(jax.make_jaxpr(logits)(params).jaxpr)
    assert flops.forward(spec, flops.Work(tokens=1, scored=1, seen=1)) == counted


def test_shared_prompts_see_what_the_mask_says():
    batch = tiny.pack_by_hand(
        [[(g.prompt, g.responses) for g in GROUPS]],
        length=128,
        groups_per_row=5,
        responses=3,
    )
    mask = visible(Tokens(batch.positions, batch.segments, batch.branches), None)
    real = batch.segments > 0
    work = flops.shared(GROUPS)
    assert work.seen == int(np.sum(np.asarray(mask) & real[:, :, None]))
    assert work.tokens == int(np.sum(real))
    assert work.scored == int(np.sum(batch.lengths))


def test_repeated_prompts_are_counted_once_for_each_response():
    work = flops.repeated(GROUPS)
    expected = [
        len(group.prompt) + len(response)
        for group in GROUPS
        for response in group.responses
    ]
    assert work.tokens == sum(expected)
    assert work.seen == sum(n * (n + 1) // 2 for n in expected)
    assert work.scored == flops.shared(GROUPS).scored


def test_a_reference_in_the_step_adds_one_forward_pass():
    extra = flops.of_pairs(tiny.SPEC, GROUPS, True) - flops.of_pairs(
        tiny.SPEC, GROUPS, False
    )
    assert extra == flops.forward(tiny.SPEC, flops.repeated(GROUPS))
    trained = flops.of_groups(tiny.SPEC, GROUPS)
    assert trained == 3 * flops.forward(tiny.SPEC, flops.shared(GROUPS))
