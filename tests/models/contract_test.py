"""Products and their gradients against jnp.einsum and its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models.contract import contract, product

SIZES = dict(zip('bmgqkhtdfn', (2, 2, 3, 5, 7, 4, 6, 3, 8, 2), strict=True))
EQUATIONS = [
    'btd,df->btf',
    'btf,fd->btd',
    'btd,dnh->btnh',
    'btnh,nhd->btd',
    'bmgqh,bmkh->bmgqk',
    'bmgqk,bmkh->bmgqh',
    'df,btd->fbt',
    'tf,dn->tfdn',
]


def operands(equation, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.normal(size=[SIZES[axis] for axis in axes]), dtype)
        for axes in equation.split('->')[0].split(',')
    ]


@pytest.mark.parametrize('equation', EQUATIONS)
def test_value_and_gradients(equation):
    a, b = operands(equation)
    weights = jnp.cos(jnp.arange(jnp.einsum(equation, a, b).size, dtype=jnp.float32))

    def total(of):
        return lambda a, b: jnp.sum(of(equation, a, b).ravel() * weights)

    expected = jax.value_and_grad(total(jnp.einsum), (0, 1))(a, b)
    got = jax.value_and_grad(total(contract), (0, 1))(a, b)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert x.shape == y.shape
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_sums_in_the_dtype_asked_for():
    a, b = operands('btd,df->btf', jnp.bfloat16)
    assert contract('btd,df->btf', a, b).dtype == jnp.bfloat16
    out, pull = jax.vjp(lambda a, b: contract('btd,df->btf', a, b, jnp.float32), a, b)
    assert out.dtype == jnp.float32
    exact = jnp.einsum('btd,df->btf', a.astype(jnp.float32), b.astype(jnp.float32))
    np.testing.assert_allclose(out, exact, rtol=1e-6)
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16, jnp.bfloat16]


def lhs_shapes(x, x_axes, y, y_axes, out):
    """Shapes of the operands in the order in which the product takes them."""
    jaxpr = jax.make_jaxpr(lambda x, y: product(x, x_axes, y, y_axes, out))(x, y)
    text = str(jaxpr)
    assert text.count('dot_general') == 1
    closed = [eqn for eqn in _equations(jaxpr.jaxpr) if 'dot_general' in str(eqn.primitive)]
    (dot,) = closed
    return [tuple(v.aval.shape) for v in dot.invars], dot.params['dimension_numbers']


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        inner = eqn.params.get('jaxpr')
        if inner is None:
            yield eqn
        else:
            yield from _equations(getattr(inner, 'jaxpr', inner))


def test_the_larger_operand_is_not_transposed():
    small, large = jnp.ones((6, 3)), jnp.ones((6, 8))
    # the gradient of a weight: the sum is over the first axis, so the larger comes second
    shapes, (((left,), (right,)), _) = lhs_shapes(large, 'tf', small, 'td', 'df')
    assert shapes == [(6, 3), (6, 8)]
    assert (left, right) == (0, 0)
    # the sum is over the last axis of the larger, which therefore comes first
    shapes, (((left,), _), _) = lhs_shapes(jnp.ones((3, 8)), 'df', large, 'tf', 'td')
    assert shapes[0] == (6, 8)
    assert left == 1


@pytest.mark.parametrize(
    ('platform', 'barriers', 'transposes'), [('cpu', 1, 1), ('cuda', 0, 1), ('tpu', 0, 1)]
)
def test_what_is_turned_stays_a_product_of_its_own_on_cpus(platform, barriers, transposes):
    x, g = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((4, 3), jnp.bfloat16)
    turned = jax.jit(lambda x, g: product(g, 'td', x, 'tf', 'fd'))
    text = turned.trace(x, g).lower(lowering_platforms=(platform,)).as_text()
    assert text.count('optimization_barrier') == barriers
    assert text.count('stablehlo.transpose') == transposes


def test_the_gradient_of_activations_takes_the_cotangent_as_it_lies():
    x, weight = operands('btd,df->btf')
    out, pull = jax.vjp(lambda x: contract('btd,df->btf', x, weight), x)
    (dot,) = [
        eqn
        for eqn in _equations(jax.make_jaxpr(pull)(out).jaxpr)
        if 'dot_general' in str(eqn.primitive)
    ]
    assert dot.invars[0].aval.shape == out.shape
    assert dot.params['dimension_numbers'] == (((2,), (1,)), ((), ()))
    assert dot.outvars[0].aval.shape == x.shape


@pytest.mark.parametrize('equation', ['ab,bc', 'ab->a', 'ab,bc->a', 'aa,ab->b'])
def test_other_equations_are_refused(equation):
    with pytest.raises(ValueError, match='expected A,B->C'):
        contract(equation, jnp.ones((2, 2)), jnp.ones((2, 2)))


@pytest.mark.parametrize('place', [0, 1])
def test_a_gradient_that_nobody_asks_for_is_not_computed(place):
    operand = operands('btd,df->btf')

    def total(one):
        both = [one, operand[1]] if place == 0 else [operand[0], one]
        return jnp.sum(contract('btd,df->btf', *both) ** 2)

    products = str(jax.make_jaxpr(jax.grad(total))(operand[place])).count('dot_general[')
    assert products == 2  # forward, and one gradient
    stopped = jax.make_jaxpr(jax.grad(lambda x: total(jax.lax.stop_gradient(x))))
    assert str(stopped(operand[place])).count('dot_general[') == 1
