"""What a layer computes again for its gradient: no value changes, and nothing twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import attention, transformer
from epa_jax.models.remat import CUDNN, rematerialised
from epa_jax.models.transformer import Compute
from tests import tiny


def total(tokens, branches=True, **how):
    """A function of the parameters that all states take part in."""
    tokens = jnp.asarray(tokens, jnp.int32)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

    def run(params):
        states = transformer.hidden_states(
            params,
            tokens,
            positions,
            ones,
            0 * ones if branches else None,
            spec=tiny.SPEC,
            compute=Compute(**how),
        )
        return jnp.sum(jnp.sin(states))

    return run


@pytest.mark.parametrize(('length', 'atol'), [(9, 1e-5), (192, 1e-4)])  # sums of float32
@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_changes_no_gradient(remat, length, atol):
    params = tiny.params()
    tokens = np.random.default_rng(1).integers(0, 48, (2, length))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol),
        jax.jit(jax.grad(total(tokens, remat=remat)))(params),
        jax.jit(jax.grad(total(tokens, remat='none')))(params),
    )


def products_in(jaxpr):
    """Products and kernels whose results something uses, loop bodies counted once."""
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {
        id(v) for v in jaxpr.outvars
    }
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ('dot_general', 'pallas_call'):
            # some versions of JAX leave kernels that are dead to the compiler
            yield from [eqn] * any(id(v) in used for v in eqn.outvars)
            continue
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, 'jaxpr', inner)
            if hasattr(inner, 'eqns'):
                yield from products_in(inner)


@pytest.mark.parametrize(('remat', 'products'), [('none', 21), ('dots', 21), ('full', 27)])
def test_kept_products_are_not_computed_again(remat, products):
    """Of a layer's seven matrices: forward, two gradients, and again all but the last."""
    traced = jax.make_jaxpr(jax.grad(total(np.zeros((2, 9)), remat=remat)))(tiny.params())
    batched = [eqn.params['dimension_numbers'][1] for eqn in products_in(traced.jaxpr)]
    assert batched.count(((), ())) == products  # attention's have batch dimensions


@pytest.mark.parametrize('backend', ['xla', 'spans', 'pallas', 'splash'])
def test_attention_that_is_kept_is_not_computed_again(backend):
    tokens = np.zeros((1, 192))

    def products(remat):
        interpret = backend in ('pallas', 'splash')
        how = {'attention': backend, 'remat': remat, 'interpret': interpret}
        run = total(tokens, branches=backend != 'splash', **how)
        traced = jax.make_jaxpr(jax.grad(run))(tiny.params())
        return len(list(products_in(traced.jaxpr)))

    assert products('dots') == products('none')
    assert products('full') > products('none') + 6  # six of the layer's, and attention's


@pytest.mark.parametrize(('remat', 'passes'), [('none', 1), ('dots', 1), ('full', 2)])
def test_what_cudnn_finds_is_kept(remat, passes, monkeypatch):
    """Traced alone, for that needs no GPU."""
    own = 'jax._src.cudnn.fused_attention_stablehlo'
    monkeypatch.setattr(f'{own}.check_cudnn_version', lambda: 91000)
    mask = jnp.ones((1, 64, 64), bool)

    def layer(x, weight):
        return x + attention._cudnn(x * weight, x, x, mask), None

    def run(x):
        return jnp.sum(
            jax.lax.scan(rematerialised(layer, remat), x, jnp.ones(3, x.dtype))[0]
        )

    text = str(jax.make_jaxpr(jax.grad(run))(jnp.ones((1, 64, 2, 8), jnp.bfloat16)))
    assert text.count(f'{CUDNN}_wrapper[') == passes


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="remat 'some': expected none, dots or full"):
        total(np.zeros((1, 2)), remat='some')(tiny.params())
