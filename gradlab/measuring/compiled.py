"""Public functions compiled once for all models of one structure, also when called outside `jit`.

A model's layers are functions, and what they close over is no argument of theirs: `jax.jit` would
keep its first values for ever, and compile anew for every new function. So each layer is traced at
every call, which is cheap; its arrays, closed over or not, go in as arguments, and the program that
is left, compared operation by operation, says whether it has been compiled before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun

from gradlab.models import chain
from gradlab.models.chain import Chain

P = ParamSpec("P")
R = TypeVar("R")


def once(function: Callable[P, R]) -> Callable[P, R]:
    """`function(model, x, ...)`, compiled once for each structure of its arguments.

    Its `loss`, if it has one, is taken as the layers are; all others are part of the structure.
    Inside a transformation of JAX (`jit`, `vmap`, `grad`), and where a layer cannot be traced by
    itself, it is called as it is.
    """
    signature = inspect.signature(function)
    run = jax.jit(partial(_run, function), static_argnums=0)

    @wraps(function)
    def compiled(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(signature.bind(*args, **kwargs).arguments)
        call = None if _is_traced(jnp.zeros(())) else _call(given)
        if call is None:
            return function(*args, **kwargs)
        found: R = run(call.structure, call.arrays)
        return found

    return compiled


@dataclass(frozen=True)
class _Program:
    """A function of arrays as its program; equal where the derivatives' programs are."""

    key: Any
    closed: ClosedJaxpr = field(compare=False)

    def __call__(self, constants: Sequence[Any], *args: Any) -> Any:
        closed = ClosedJaxpr(self.closed.jaxpr, list(constants))
        return jaxpr_as_fun(closed)(*jax.tree.leaves(args))[0]


class _Structure(NamedTuple):
    """What is compiled for: all of a call but its arrays."""

    is_chain: bool
    layers: tuple[_Program, ...]
    loss: _Program | None
    others: tuple[tuple[str, Any], ...]


class _Call(NamedTuple):
    """A call of a public function, taken apart."""

    structure: _Structure
    arrays: Any


def _run(function: Callable[..., Any], structure: _Structure, arrays: Any) -> Any:
    """`function` of the arguments that were taken apart."""
    x, layers, constants = arrays
    parts = [
        Chain(partial(program, own), params)
        for program, (own, params) in zip(structure.layers, layers, strict=True)
    ]
    given = dict(structure.others, model=parts[0] if structure.is_chain else parts, x=x)
    if structure.loss:
        given["loss"] = partial(structure.loss, constants)
    return function(**given)


def _call(given: dict[str, Any]) -> _Call | None:
    """A call taken apart, or None where that is not possible."""
    model, x, loss = given.pop("model"), given.pop("x"), given.pop("loss", None)
    # The function itself asks for the derivatives that it takes.
    parts, state = chain.checked(model, x, "no"), jax.eval_shape(jnp.asarray, x)
    programs, arrays = [], []
    for part in parts:
        params = jax.eval_shape(partial(chain.params_at, layer=0), part.params)
        traced = _traced(part.layer, params, state)
        if traced is None:
            return None
        programs.append(traced[0])
        arrays.append((traced[1], part.params))
        state = jax.eval_shape(part, state)
    of_loss = _traced(loss, state) if loss else (None, [])
    if of_loss is None:
        return None
    if any(map(_is_traced, jax.tree.leaves((x, arrays, of_loss[1])))):
        return None
    others = tuple((name, _hashable(value)) for name, value in given.items())
    structure = _Structure(isinstance(model, Chain), tuple(programs), of_loss[0], others)
    return _Call(structure, (x, arrays, of_loss[1]))


def _is_traced(array: Any) -> bool:
    return isinstance(array, jax.core.Tracer)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, Sequence) else value


def _traced(function: Callable[..., Any], *args: Any) -> tuple[_Program, list[Any]] | None:
    """A function's program with the arrays that it closes over, or None where it has none."""
    try:
        closed = jax.make_jaxpr(function)(*args)
        program = _Program(None, closed)
        # A rule of one's own for a derivative is no part of the function's own program.
        derivative = _derivative(program, closed.consts, args)
    except Exception:
        # Called as it is, it says itself what is wrong with it.
        return None
    if len(closed.jaxpr.outvars) != 1:
        return None
    key = _key_of_program(closed.jaxpr), _key(derivative)
    return _Program(key, closed), list(closed.consts)


def _derivative(program: _Program, constants: list[Any], args: tuple[Any, ...]) -> ClosedJaxpr:
    """The program of a derivative: forwards, or backwards where there is only that."""

    def forward(constants: Any, args: Any) -> Any:
        return jax.jvp(partial(program, constants), args, jax.tree.map(_tangent, args))

    def reverse(constants: Any, args: Any) -> Any:
        output, pull_back = jax.vjp(partial(program, constants), *args)
        return chain.real_part(pull_back(output))

    try:
        return jax.make_jaxpr(forward)(constants, args)
    except TypeError:
        return jax.make_jaxpr(reverse)(constants, args)


def _tangent(primal: Any) -> Any:
    """A tangent of a number; bools, ints and keys have one of no size."""
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return primal
    return np.zeros(primal.shape, jax.dtypes.float0)


# ---- what is compared of a program ---------------------------------------------------------------


def _key_of_program(program: Jaxpr) -> Any:
    """All of a program but the names of its variables, and functions that are made anew."""
    numbers: dict[Any, int] = {}

    def name(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return _key(atom.val), str(atom.aval)
        return numbers.setdefault(atom, len(numbers)), str(atom.aval)

    inputs = tuple(name(atom) for atom in [*program.constvars, *program.invars])
    equations = tuple(
        (
            equation.primitive.name,
            tuple(name(atom) for atom in equation.invars),
            tuple(_key(value) for _, value in _params(equation)),
            tuple(name(atom) for atom in equation.outvars),
        )
        for equation in program.eqns
    )
    return inputs, equations, tuple(name(atom) for atom in program.outvars)


def _params(equation: JaxprEqn) -> list[tuple[str, Any]]:
    """The parameters of an operation by name, but for rules of derivatives, which stand beside."""
    has_rules = equation.primitive.name.startswith(("custom_jvp", "custom_vjp"))
    plain = (ClosedJaxpr, Jaxpr, int) if has_rules else object
    kept = [(name, value) for name, value in equation.params.items() if isinstance(value, plain)]
    return sorted(kept, key=lambda item: item[0])


def _key(value: Any) -> Any:
    """What tells one parameter of an operation, or one constant, from another."""
    if isinstance(value, ClosedJaxpr):
        return _key_of_program(value.jaxpr), tuple(map(_key, value.consts))
    if isinstance(value, Jaxpr):
        return _key_of_program(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        plain: Any = value
        is_key = jnp.issubdtype(plain.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(plain) if is_key else plain)
        return str(array.dtype), array.shape, array.tobytes()
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in sorted(value.items()))
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return type(value).__name__, value
