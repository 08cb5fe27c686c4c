"""How far an optimiser's steps move what a model computes: to first order, and at their rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from gradlab.errors import BadInput
from gradlab.measuring.training import Params, fast_norm

States = Callable[[Params], Sequence[Any]]  # from parameters to what is watched, a pytree each


class Moves(NamedTuple):
    """Logs of root mean squares, each `(num_states,)`; -inf of what is 0 or does not move.

    Attributes:
        start: of the states at the start.
        first: of their change in the first step, to first order in its rate: the derivative of each
            state along the step.
        later: of their change in all steps, at the rate that they have.
    """

    start: Array
    first: Array
    later: Array


def moves(
    states: States,
    loss: Callable[[Params], Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    num_steps: int = 1,
) -> Moves:
    """What `num_steps` steps of an optimiser down a loss do to the states."""

    def step(_: Any, carry: tuple[Params, Any]) -> tuple[Params, Any]:
        now, state = carry
        updates, state = optimizer.update(jax.grad(loss)(now), state, now)
        return optax.apply_updates(now, updates), state

    first = params, optimizer.init(params)
    updates, _ = optimizer.update(jax.grad(loss)(params), first[1], params)
    along = jax.tree.map(lambda p, u: u.astype(p.dtype), params, updates)
    before, slopes = pushed(states, params, along)
    after = states(jax.lax.fori_loop(0, num_steps, step, first)[0])
    return Moves(log_sizes(before), log_sizes(slopes), log_sizes(_less(after, before)))


def pushed(function: Callable[[Any], Any], at: Any, along: Any) -> tuple[Any, Any]:
    """`function(at)`, and its derivative along a direction.

    Forwards; or, where an operation has a reverse rule alone (a `custom_vjp`), from the reverse
    pass: `u -> J^T u` is linear, and its transpose at a direction v is `J v`.

    Raises:
        BadInput: for an operation whose reverse rule cannot be transposed either.
    """
    if not _has_reverse_rules(jax.make_jaxpr(function)(at).jaxpr):
        return jax.jvp(function, (at,), (along,))
    value, pull = jax.vjp(function, at)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), value)
    try:
        (slopes,) = jax.linear_transpose(lambda u: pull(u)[0], like)(along)
    except (AssertionError, NotImplementedError, TypeError, ValueError):
        raise BadInput(
            "An operation with a jax.custom_vjp has a reverse rule that is no linear program of "
            "JAX, so that no derivative along a step can be had; allowed: a rule of JAX's own "
            "operations, linear in what it is given"
        ) from None
    return value, slopes


def _has_reverse_rules(program: Jaxpr) -> bool:
    """Whether an operation of a program, or of one inside it, is a `custom_vjp`."""
    return any(
        equation.primitive.name.startswith("custom_vjp")
        or any(map(_has_reverse_rules, _inner(equation)))
        for equation in program.eqns
    )


def _inner(equation: JaxprEqn) -> list[Jaxpr]:
    """The programs that an operation runs."""
    leaves = jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda one: isinstance(one, Jaxpr | ClosedJaxpr)
    )
    found = [one.jaxpr if isinstance(one, ClosedJaxpr) else one for one in leaves]
    return [one for one in found if isinstance(one, Jaxpr)]


def by_layer(is_sign: Array, rates: Array) -> optax.GradientTransformation:
    """Steps down the gradient, or by its sign where `is_sign` is not 0, each leaf at its own rate.

    For parameters that are a list; both may be traced, so that one program compares them.
    """

    def step(grads: Params, _: Params) -> Params:
        ways = [jnp.where(is_sign != 0, jnp.sign(g), g) for g in grads]
        return [-rate * way for rate, way in zip(rates, ways, strict=True)]

    return optax.stateless(step)


def log_sizes(states: Sequence[Any]) -> Array:
    """The log of the root mean square over all entries of each state, `(num_states,)`."""
    return jnp.stack([_log_size(state) for state in states])


def _log_size(state: Any) -> Array:
    size = sum(leaf.size for leaf in jax.tree.leaves(state))
    norm = fast_norm(state)
    return jnp.log(norm) - jnp.log(jnp.asarray(size, norm.dtype)) / 2


def _less(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)
