"""Where a program leaves the finite numbers, and where its derivative does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis.program import Program, evaluate


def first_not_finite(program: Program, inputs: Sequence[Any]) -> int | None:
    """The step with the first output that holds a nan or an inf out of finite inputs, or None.

    A mask's -inf is meant: a step whose outputs hold -inf and no nan is passed over, but where a
    logarithm made it.
    """
    flags, infinite = map(np.asarray, jax.jit(partial(_flags, program))(list(inputs)))
    bad = np.flatnonzero(flags)
    return _origin(program, int(bad[0]), infinite) if bad.size else None


def _origin(program: Program, k: int, infinite: np.ndarray) -> int:
    """The logarithm whose -inf a step has read, or the step itself."""
    makers = {v: i for i, step in enumerate(program.steps) for v in step.outputs}
    front, seen = [k], set[int]()
    while front:
        reads = {makers[v] for v in program.steps[front.pop()].reads if v in makers}
        found = {i for i in reads - seen if infinite[i]}
        seen |= found
        front += sorted(found)
    return min((i for i in seen if program.steps[i].name == "log"), default=k)


def at_the_edge(program: Program, inputs: Sequence[Any]) -> list[str]:
    """The names of operations that read a 0 where their value or their derivative is not finite."""
    names = ["sqrt", "rsqrt", "log", "pow", "div"]
    flags = np.asarray(jax.jit(partial(_edges, program, names))(list(inputs)))
    return [name for name, flag in zip(names, flags, strict=True) if flag]


def _edges(program: Program, names: list[str], inputs: list[Any]) -> Array:
    read = {
        step.inputs[name == "div"]: name
        for name in names
        for step in program.steps
        if step.name == name and isinstance(step.inputs[name == "div"], int)
    }
    found = {name: jnp.asarray(False) for name in names}

    def at(number: int, value: Any) -> Any:
        if number in read:
            found[read[number]] |= jnp.any(value == 0)
        return value

    evaluate(program, inputs, at)
    return jnp.stack(list(found.values()))


def _flags(program: Program, inputs: list[Any]) -> tuple[Array, Array]:
    """By step, whether its first output holds a nan or +inf; and whether it holds -inf."""
    place = {step.outputs[0]: k for k, step in enumerate(program.steps)}
    seen: dict[int, tuple[Array, Array]] = {}

    def at(number: int, value: Any) -> Any:
        if number in place and jnp.issubdtype(jnp.result_type(value), jnp.floating):
            bad = jnp.any(jnp.isnan(value) | (value == jnp.inf))
            seen[place[number]] = bad, jnp.any(value == -jnp.inf)
        return value

    evaluate(program, inputs, at)
    never = jnp.asarray(False)
    rows = [seen.get(k, (never, never)) for k in range(len(program.steps))]
    bad, infinite = zip(*rows, strict=True)
    return jnp.stack(bad), jnp.stack(infinite)
