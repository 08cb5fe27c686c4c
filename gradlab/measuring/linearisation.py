"""A layer's linear map at one state, read off its linearisation: times columns, or written out.

`jax.linearize` gives the map as a program. It is run here on all columns of a matrix at once, which
stand side by side as they do in `J P`; `jax.vmap` lays them in rows, and XLA on a CPU multiplies by
a transposed matrix more slowly. For the Jacobian itself no identity is multiplied by anything: it
stays a diagonal until it meets a matrix, whose columns it scales (`docs/fast_path.md`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from gradlab.models.chain import Layer

# Up to this width XLA's own loops are cheaper, on a CPU, than its call of a matrix product; and it
# unrolls sums of up to so many terms.
TINY, _UNROLLED = 16, 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linearised:
    """A layer's linear map without the layer's own parameters, which need no second copy.

    `parameters[i]` is the number of the parameter that constant i of the program is, or None where
    it is in `kept`.
    """

    kept: list[Array]
    parameters: tuple[int | None, ...] = field(metadata={"static": True})
    program: Jaxpr = field(metadata={"static": True})

    def times(self, params: Any, columns: Array) -> Array:
        """`J columns`, `(width_out, num_columns)` from `(width_in, num_columns)`."""
        if self._has_free_jacobian(params):
            # One pass over J, for one over the result.
            return matmul(_in_rows(self.jacobian(params)), columns)
        pushed = self._run(params, Columns(columns, 0), columns.shape[1])
        return written_out(pushed, columns.shape[1])

    def jacobian(self, params: Any) -> Array:
        """`J`, `(width_out, width_in)`."""
        return written_out(self._of_identity(params), typed(self.program.invars[0]).size)

    def constants(self, params: Any) -> list[Any]:
        """The constants of the program, in its order."""
        kept, own = iter(self.kept), jax.tree.leaves(params)
        return [next(kept) if number is None else own[number] for number in self.parameters]

    def takes_sums(self, params: Any) -> bool:
        """Whether entries of J are sums, in which terms may cancel: not so for `diag(phi') W`."""
        return _adds(self.program) or self._num_products_of_jacobian(params) > 0

    def _has_free_jacobian(self, params: Any) -> bool:
        """Whether J takes no product, and is not diagonal, so that none is needed with it."""
        return self._num_products_of_jacobian(params) == 0

    def _num_products_of_jacobian(self, params: Any) -> int:
        """How many products J takes; -1 where it is diagonal, or no function of the input."""
        num_products = -1

        def trace(linear: Linearised, params: Any) -> None:
            nonlocal num_products
            J = linear._of_identity(params)
            num_products = J.num_products if isinstance(J, Columns) else -1

        jax.eval_shape(trace, self, params)
        return num_products

    def _of_identity(self, params: Any) -> Any:
        aval = typed(self.program.invars[0])
        return self._run(params, Diagonal(jnp.ones(aval.shape, aval.dtype)), aval.size)

    def _run(self, params: Any, value: Linear, num_columns: int) -> Any:
        step = partial(equation_on_columns, num=num_columns)
        return run(self.program, self.constants(params), [value], step)[0]


def linearise(layer: Layer, params: Any, z: Array) -> tuple[Array, Linearised]:
    """`layer(z)`, and its linear map at z."""
    output, apply_J = jax.linearize(partial(layer, params), z)
    closed = jax.make_jaxpr(apply_J)(z)
    own = jax.tree.leaves(params)
    parameters = tuple(
        next((number for number, leaf in enumerate(own) if leaf is constant), None)
        for constant in closed.consts
    )
    kept = [c for c, number in zip(closed.consts, parameters, strict=True) if number is None]
    # Each is computed once: XLA would put an expensive phi' into the product, a time for a column.
    return output, Linearised(list(jax.lax.optimization_barrier(kept)), parameters, closed.jaxpr)


def push(layer: Layer, params: Any, z: Array, columns: Array) -> tuple[Array, Array]:
    """`layer(z)`, and `J columns`, `(width_out, num_columns)`."""
    output, linear = linearise(layer, params, z)
    return output, linear.times(params, columns)


def jacobian(layer: Layer, params: Any, z: Array) -> tuple[Array, Array]:
    """`layer(z)`, and `J`, `(width_out, width_in)`."""
    output, linear = linearise(layer, params, z)
    return output, linear.jacobian(params)


def matmul(A: Array, B: Array) -> Array:
    """`A @ B` for matrices, however small; sums are in at least float32, as XLA's are."""
    if max(*A.shape, *B.shape) > TINY:
        return A @ B
    wide = jnp.promote_types(B.dtype, jnp.float32)
    slices = (slice(k, k + _UNROLLED) for k in range(0, len(B), _UNROLLED))
    pairs = ((A[:, some].astype(wide), B[some].astype(wide)) for some in slices)
    terms = [jnp.sum(a[:, :, None] * b[None], axis=1) for a, b in pairs]
    return sum(terms[1:], terms[0]).astype(B.dtype)


# ---- a linear program, run on a matrix ---------------------------------------------------------


class Diagonal(NamedTuple):
    """What the program has made of each basis vector e_j: `entries[j] e_j`, in the order of j.

    One axis of it counts them; others, if any, are of length 1, as that of a batch of one example.
    """

    entries: Array


class Columns(NamedTuple):
    """What the program has made of each column; the last axis counts them.

    `num_products` is how many operations that cost more than their result it took.
    """

    matrix: Array
    num_products: int


Linear = Diagonal | Columns
_Rule = Callable[[JaxprEqn, Sequence[Any], int], Linear]

# From an equation and its inputs to its outputs.
Step = Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]]


def run(program: Jaxpr, constants: Sequence[Any], inputs: Sequence[Any], step: Step) -> list[Any]:
    """The outputs of a program, equation by equation; those that hold a program are gone into."""
    seen = dict(zip([*program.constvars, *program.invars], [*constants, *inputs], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else seen[atom]

    for equation in program.eqns:
        values = [read(atom) for atom in equation.invars]
        inner = _inner(equation)
        outputs = run(inner.jaxpr, inner.consts, values, step) if inner else step(equation, values)
        seen.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in program.outvars]


def equation_on_columns(equation: JaxprEqn, inputs: Sequence[Any], num: int) -> Sequence[Any]:
    """The outputs of one operation, for `num` columns; what is not linear in them is an array."""
    name = equation.primitive.name
    if any(isinstance(value, Linear) for value in inputs) and name in _RULES:
        return [_RULES[name](equation, inputs, num)]
    return _any_other(equation, inputs, num)


def _inner(equation: JaxprEqn) -> ClosedJaxpr | None:
    """The program of an operation that does nothing but run it."""
    name = equation.primitive.name
    if name not in _CALLS:
        return None
    inner = equation.params[_CALLS[name]]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())


def _adds(program: Jaxpr) -> bool:
    """Whether a program adds or subtracts what is linear in its input."""
    return any(
        equation.primitive.name in ("add", "add_any", "sub")
        or ((inner := _inner(equation)) is not None and _adds(inner.jaxpr))
        for equation in program.eqns
    )


def _any_other(equation: JaxprEqn, inputs: Sequence[Any], num: int) -> Sequence[Any]:
    """An operation that there is no rule for, as `jax.vmap` does it."""
    params = equation.primitive.get_bind_params(equation.params)

    def bind(*values: Any) -> list[Any]:
        outputs = equation.primitive.bind(*values, **params)
        return list(outputs) if equation.primitive.multiple_results else [outputs]

    if not any(isinstance(value, Linear) for value in inputs):
        return bind(*inputs)
    axes = [-1 if isinstance(value, Linear) else None for value in inputs]
    values = [written_out(value, num) if isinstance(value, Linear) else value for value in inputs]
    num_products = _num_products(inputs) + 1
    return [Columns(output, num_products) for output in jax.vmap(bind, axes, -1)(*values)]


def _entry_by_entry(equation: JaxprEqn, inputs: Sequence[Any], num: int) -> Linear:
    """An operation entry by entry, for which a scalar is as good as an array of its repetition."""
    shape = typed(equation.outvars[0]).shape
    linear = [value for value in inputs if isinstance(value, Linear)]
    # The operation is linear, so that zeros stay zeros.
    is_diagonal = _is_row(shape) and all(isinstance(value, Diagonal) for value in linear)

    def plain(value: Any, dtype: Any) -> Array:
        if is_diagonal:
            array = value.entries if isinstance(value, Diagonal) else value
            return jnp.broadcast_to(jnp.asarray(array, dtype), shape)
        matrix = written_out(value, num).astype(dtype)
        return jnp.broadcast_to(matrix, (*shape, num))

    dtypes = [typed(atom).dtype for atom in equation.invars]
    values = map(plain, inputs, dtypes)
    output = equation.primitive.bind(*values, **equation.params)
    return Diagonal(output) if is_diagonal else Columns(output, _num_products(inputs))


def _is_row(shape: tuple[int, ...]) -> bool:
    """Whether no more than one axis is longer than 1."""
    return sum(size != 1 for size in shape) <= 1


def _moved(equation: JaxprEqn, inputs: Sequence[Any], num: int) -> Linear:
    """An operation that lays the same entries out in another shape, and computes nothing."""
    (value,) = inputs
    shape = typed(equation.outvars[0]).shape
    if isinstance(value, Diagonal) and _is_row(shape) and math.prod(shape) == value.entries.size:
        return Diagonal(value.entries.reshape(shape))
    params = equation.primitive.get_bind_params(equation.params)
    bind = partial(equation.primitive.bind, **params)
    return Columns(jax.vmap(bind, -1, -1)(written_out(value, num)), _num_products(inputs))


def _dot(equation: JaxprEqn, inputs: Sequence[Any], num: int) -> Linear:
    """A product of a constant and a linear value, in either order."""
    params = equation.params
    contracted, batch = params["dimension_numbers"]
    side = 0 if isinstance(inputs[0], Linear) else 1
    value, constant = inputs[side], inputs[1 - side]
    if isinstance(value, Diagonal) and _contracts_all(value, contracted[side], batch[0]):
        dtype = typed(equation.outvars[0]).dtype
        matrix = jnp.moveaxis(constant, contracted[1 - side][0], -1)
        scales = jnp.broadcast_to(value.entries.ravel().astype(dtype), matrix.shape)
        shape = typed(equation.outvars[0]).shape
        return Columns((matrix.astype(dtype) * scales).reshape(*shape, value.entries.size), 0)
    precision = params["precision"]
    along = contracted[1 - side]
    if constant.ndim == 2 and along == (0,):
        constant, along = _in_rows(constant.T), (1,)
    matrix = jax.lax.dot_general(
        constant,
        written_out(value, num),
        ((along, contracted[side]), (batch[1 - side], batch[side])),
        precision if side or not isinstance(precision, tuple) else precision[::-1],
        params["preferred_element_type"],
    )
    if side == 0:
        # The axes of the first operand come first, whichever that is.
        num_batch, num_own = len(batch[0]), constant.ndim - len(contracted[0]) - len(batch[0])
        own = range(num_batch, num_batch + num_own)
        matrix = jnp.moveaxis(matrix, tuple(own), tuple(range(-1 - num_own, -1)))
    return Columns(matrix, _num_products(inputs) + 1)


def _contracts_all(value: Diagonal, axes: Sequence[int], batch: Sequence[int]) -> bool:
    """Whether a product sums over all basis vectors at once."""
    return len(axes) == 1 and not batch and value.entries.shape[axes[0]] == value.entries.size


def _in_rows(matrix: Array) -> Array:
    """The same, row after row in memory: XLA on a CPU multiplies by a transposed matrix slowly."""
    return jax.lax.optimization_barrier(matrix.reshape(-1)).reshape(matrix.shape)


def typed(atom: Any) -> Any:
    """Shape and dtype of a variable of a program, for one column."""
    return atom.aval


def _num_products(inputs: Sequence[Any]) -> int:
    return max((value.num_products for value in inputs if isinstance(value, Columns)), default=0)


def written_out(value: Any, num: int) -> Array:
    """The matrix that a value stands for, `(..., num)`: a constant stands in every column."""
    if isinstance(value, Diagonal):
        return jnp.diag(value.entries.ravel()).reshape(*value.entries.shape, -1)
    if isinstance(value, Columns):
        return value.matrix
    return jnp.broadcast_to(jnp.asarray(value)[..., None], (*jnp.shape(value), num))


# Operations that run a program of their own, and the parameter that holds it.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"}
_ENTRY_BY_ENTRY = (
    "add",
    "add_any",
    "convert_element_type",
    "copy",
    "copy_p",
    "div",
    "mul",
    "neg",
    "select_n",
    "sub",
)
_MOVED = ("expand_dims", "reshape", "squeeze", "transpose")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_ENTRY_BY_ENTRY, _entry_by_entry),
    **dict.fromkeys(_MOVED, _moved),
    "dot_general": _dot,
}
