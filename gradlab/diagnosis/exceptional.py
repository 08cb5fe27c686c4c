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

    A mask's -inf is meant: a step whose outputs hold -inf and no nan is passed over.
    """
    flags = np.asarray(jax.jit(partial(_flags, program))(list(inputs)))
    bad = np.flatnonzero(flags)
    return int(bad[0]) if bad.size else None


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


def _flags(program: Program, inputs: list[Any]) -> Array:
    place = {step.outputs[0]: k for k, step in enumerate(program.steps)}
    seen: dict[int, Array] = {}

    def at(number: int, value: Any) -> Any:
        if number in place and jnp.issubdtype(jnp.result_type(value), jnp.floating):
            seen[place[number]] = jnp.any(jnp.isnan(value) | (value == jnp.inf))
        return value

    evaluate(program, inputs, at)
    never = jnp.asarray(False)
    return jnp.stack([seen.get(k, never) for k in range(len(program.steps))])
