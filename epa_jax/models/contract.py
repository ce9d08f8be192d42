"""Products of two arrays whose gradients are products in a cheap order.

A matrix product wants its left operand with the summed axis last and its right operand
with it first; an operand that lies otherwise is copied, together with all elementwise work
that was fused into it, against the grain of memory. Automatic differentiation always puts
the cotangent left. That suits the gradient of activations, which turns the weight and
leaves the cotangent as it lies, but for the gradient of a weight the larger operand is
often copied. There the smaller one is copied here.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.typing import DTypeLike


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(
    equation: str, a: jax.Array, b: jax.Array, dtype: DTypeLike | None = None
) -> jax.Array:
    """`jnp.einsum` of two arrays of one dtype.

    Args:
      equation: two inputs and an output; an axis is in at least two of the three, and
        in each at most once.
      a: first operand; activations where it matters.
      b: second operand, of the dtype of `a`; a weight where it matters.
      dtype: of the sums; that of `a` by default. Gradients are rounded to the dtype of
        the operands before they are multiplied.

    Raises:
      ValueError: an equation of another form.
    """
    _parse(equation)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


def _forward(
    equation: str, a: CustomVJPPrimal, b: CustomVJPPrimal, dtype: DTypeLike | None
) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
    """Keeps of each operand what the gradient of the other needs, if that is wanted."""
    kept = (a.value if b.perturbed else None, b.value if a.perturbed else None)
    _parse(equation)
    # a plain product, which a policy of rematerialisation knows as one and may keep
    return jnp.einsum(equation, a.value, b.value, preferred_element_type=dtype), kept


def _backward(
    equation: str,
    dtype: DTypeLike | None,
    residuals: tuple[jax.Array | None, jax.Array | None],
    g: jax.Array | SymbolicZero,
) -> tuple[jax.Array | None, jax.Array | None]:
    del dtype
    if isinstance(g, SymbolicZero):
        return None, None
    a, b = residuals
    a_axes, b_axes, out = _parse(equation)
    da = db = None
    if b is not None:
        da = jnp.einsum(f'{out},{b_axes}->{a_axes}', g.astype(b.dtype), b)
    if a is not None:
        db = product(g.astype(a.dtype), out, a, a_axes, b_axes)
    return da, db


contract.defvjp(_forward, _backward, symbolic_zeros=True)


def product(
    x: jax.Array,
    x_axes: str,
    y: jax.Array,
    y_axes: str,
    out_axes: str,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """The sum over the axes that are not in `out_axes`, the larger operand as it lies.

    Args:
      x: an operand, with an axis for each letter of `x_axes`.
      x_axes: such as 'btd'.
      y: the other, with those of `y_axes`; letters in both are of one size.
      y_axes: likewise.
      out_axes: those of the result, each in one of the operands at least.
      dtype: of the sums and the result; that of the operands by default.
    """
    (big, big_axes), (small, small_axes) = sorted(
        ((x, x_axes), (y, y_axes)), key=lambda pair: -pair[0].size
    )
    summed = ''.join(axis for axis in big_axes if axis not in out_axes)
    shared = ''.join(axis for axis in big_axes if axis in small_axes and axis in out_axes)
    operands = [(big, big_axes), (small, small_axes)]
    if not big_axes.endswith(summed):
        operands.reverse()
    (left, left_axes), (right, right_axes) = operands
    free = ''.join(axis for axis in left_axes + right_axes if axis not in summed + shared)
    equation = f'{left_axes},{right_axes}->{shared}{free}'
    out = jnp.einsum(equation, left, right, preferred_element_type=dtype)
    return _turned(out, _order(shared + free, out_axes))


def _turned(x: jax.Array, order: tuple[int, ...]) -> jax.Array:
    """A product with its axes in another order, as `jnp.transpose`.

    XLA would exchange the operands instead, into a product that the fast library for CPUs
    does not take: in bfloat16 that is ten times slower.
    """
    if order == tuple(range(len(order))):
        return x

    def apart(x: jax.Array) -> jax.Array:
        return jnp.transpose(jax.lax.optimization_barrier(x), order)

    def free(x: jax.Array) -> jax.Array:
        return jnp.transpose(x, order)

    return jax.lax.platform_dependent(x, cpu=apart, default=free)


def _order(axes: str, wanted: str) -> tuple[int, ...]:
    return tuple(axes.index(axis) for axis in wanted)


def _parse(equation: str) -> tuple[str, str, str]:
    inputs, _, out = equation.partition('->')
    a, _, b = inputs.partition(',')
    counts = [(a + b + out).count(axis) for axis in set(a + b + out)]
    once_each = all(len(set(axes)) == len(axes) for axes in (a, b, out))
    if not (a and b and once_each and min(counts) >= 2):
        raise ValueError(
            f'equation {equation!r}: expected A,B->C with every axis in two of the three, '
            'at most once in each'
        )
    return a, b, out
