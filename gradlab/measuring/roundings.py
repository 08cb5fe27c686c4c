"""What rounding inside a layer may have put into its Jacobian: a running bound, entry by entry.

A Jacobian `diag(phi') W` is right to a few roundings of every entry. Where its entries are sums (a
normalisation, a softmax, a residual branch) their terms cancel, and it is only as good as the terms
were: `z/|z|` has a direction that it takes to nothing, and its stored Jacobian takes it to 1e-16.
The program of the linear map is gone through once more, with a bound beside every value, as
Wilkinson's running error analysis does (Higham 2002, section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn

from gradlab.arithmetic import scaled
from gradlab.measuring import linearisation
from gradlab.measuring.linearisation import Columns, Diagonal, Linear, Linearised, typed

# A number that rounding may have changed by more than this, relative and to first order, is not
# known: nothing is said about it.
UNKNOWN = 0.1

# A few roundings in a constant of the layer, beside those of a sum over its width.
_FEW = 8


class _Bounded(NamedTuple):
    """A linear value, and a bound of the error of every entry, which is of the same kind."""

    value: Linear
    error: Linear


def of_jacobian(linear: Linearised, params: Any) -> Array | None:
    """A bound of first order on what rounding has put into `J`, `(width_out, width_in)`.

    None where no entry of J is a sum: it is right to a few roundings of every entry then. The
    layer's constants (`1/|z|`, say) are taken to be right to `width + 8` roundings.
    """
    if not linear.takes_sums(params):
        return None
    input_type = typed(linear.program.invars[0])
    num, shape, dtype = input_type.size, input_type.shape, input_type.dtype
    exact = _Bounded(Diagonal(jnp.ones(shape, dtype)), Diagonal(jnp.zeros(shape, dtype)))
    num_roundings = max(num, typed(linear.program.outvars[0]).size) + _FEW
    step = partial(_equation, num=num, num_roundings=num_roundings)
    output = linearisation.run(linear.program, linear.constants(params), [exact], step)[0]
    return linearisation.written_out(output.error, num) if isinstance(output, _Bounded) else None


def _equation(
    equation: JaxprEqn, inputs: Sequence[Any], num: int, num_roundings: int
) -> Sequence[Any]:
    """The outputs of one operation with their bounds."""
    apply = partial(linearisation.equation_on_columns, equation, num=num)
    if not any(isinstance(value, _Bounded) for value in inputs):
        return apply(inputs)
    values, errors = _parts(inputs, 0), _parts(inputs, 1)
    outputs, name = apply(values), equation.primitive.name
    if name in _MOVES:
        carried: Sequence[Any] = [_map(jnp.abs, error) for error in apply(errors)]
        own: Sequence[Any] = [
            _map(jnp.abs if _narrows(equation) else jnp.zeros_like, out) for out in outputs
        ]
    elif name in _ENTRY_BY_ENTRY:
        carried = apply(_added(name, errors))
        own = [_map(jnp.abs, output) for output in outputs]
    elif name in _SUMS:
        carried, own = apply(_sizes(errors)), apply(_sizes(values))
        num_roundings += _num_terms(equation, values)
    else:
        matrices = _matrices(equation, values)
        carried, own = (_times(matrices, some, outputs, num) for some in (errors, values))
        num_roundings += max(typed(atom).size for atom in equation.invars)
    units = [scaled.eps(typed(atom).dtype) / 2 for atom in equation.outvars]
    return [
        _Bounded(output, _map(partial(_plus, num_roundings * unit), error, size))
        for output, error, size, unit in zip(outputs, carried, own, units, strict=True)
    ]


def _plus(factor: float, error: Array, size: Array) -> Array:
    return error + factor * size


def _map(f: Callable[..., Array], *values: Any) -> Any:
    """`f` of the entries of linear values of one kind, or of arrays."""
    first = values[0]
    if isinstance(first, Diagonal):
        return Diagonal(f(*(value.entries for value in values)))
    if isinstance(first, Columns):
        return Columns(f(*(value.matrix for value in values)), first.num_products)
    return f(*values)


def _parts(inputs: Sequence[Any], part: int) -> list[Any]:
    """The values or the errors, and constants as they are."""
    return [value[part] if isinstance(value, _Bounded) else value for value in inputs]


def _sizes(inputs: Sequence[Any]) -> list[Any]:
    return [_map(jnp.abs, jnp.asarray(x) if not isinstance(x, Linear) else x) for x in inputs]


def _added(name: str, errors: Sequence[Any]) -> list[Any]:
    """The errors and constants with which an operation adds all sizes up."""
    sizes = _sizes(errors)
    if name not in ("add", "add_any", "sub"):
        return sizes
    # What is added to something linear is linear too, or zero.
    sizes = [x if isinstance(x, Linear) else jnp.zeros_like(x) for x in sizes]
    return [sizes[0], _map(jnp.negative, sizes[1])] if name == "sub" else sizes


def _narrows(equation: JaxprEqn) -> bool:
    """Whether an operation rounds to another format."""
    before, after = typed(equation.invars[0]), typed(equation.outvars[0])
    return equation.primitive.name == "convert_element_type" and before.dtype != after.dtype


def _num_terms(equation: JaxprEqn, values: Sequence[Any]) -> int:
    """How many terms a sum has at most."""
    if equation.primitive.name != "dot_general":
        return max(typed(value).size for value in equation.invars)
    if any(isinstance(value, Diagonal) for value in values):
        return 1
    contracted = equation.params["dimension_numbers"][0][0]
    return math.prod(typed(equation.invars[0]).shape[axis] for axis in contracted)


def _matrices(equation: JaxprEqn, values: Sequence[Any]) -> list[list[Any]]:
    """For every output and linear input, the sizes of the matrix that takes one to the other."""
    rows = []
    for at, value in enumerate(values):
        if not isinstance(value, Linear):
            continue
        size = typed(equation.invars[at]).size
        basis = [
            Columns(_basis(typed(atom), size, other == at), 0) if isinstance(v, Linear) else v
            for other, (v, atom) in enumerate(zip(values, equation.invars, strict=True))
        ]
        found = linearisation.equation_on_columns(equation, basis, size)
        rows.append([jnp.abs(linearisation.written_out(f, size)).reshape(-1, size) for f in found])
    return [list(column) for column in zip(*rows, strict=True)]


def _basis(aval: Any, size: int, is_own: bool) -> Array:
    if is_own:
        return jnp.eye(size, dtype=aval.dtype).reshape(*aval.shape, size)
    return jnp.zeros((*aval.shape, size), aval.dtype)


def _times(
    matrices: list[list[Any]], values: Sequence[Any], outputs: Sequence[Any], num: int
) -> list[Columns]:
    """Sizes of matrices times the sizes of linear values, summed over the inputs."""
    linear = [
        jnp.abs(linearisation.written_out(value, num)).reshape(-1, num)
        for value in values
        if isinstance(value, Linear)
    ]
    totals = [sum(A @ x for A, x in zip(row, linear, strict=True)) for row in matrices]
    return [
        Columns(jnp.reshape(total, output.matrix.shape), output.num_products)
        for total, output in zip(totals, outputs, strict=True)
    ]


# Operations that move entries and round none.
_MOVES = frozenset(
    (
        *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p"),
        *("dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "neg"),
        *("optimization_barrier", "pad", "reshape", "rev", "select_n", "slice", "split"),
        *("squeeze", "transpose"),
    )
)
_ENTRY_BY_ENTRY = frozenset(("add", "add_any", "div", "mul", "sub"))
# Sums of terms that are a constant's entry times one of the input's.
_SUMS = frozenset(("conv_general_dilated", "cumsum", "dot_general", "reduce_sum", "scatter-add"))
