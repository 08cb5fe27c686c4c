"""Operations of a program changed one by one: a gradient let through, an input kept in range."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.diagnosis.changes import Change, Slices
from gradlab.diagnosis.program import Constant, Program, Step
from gradlab.errors import BadInput

_finfo: Any = jnp.finfo  # JAX gives it no types.

STOPPING = {"stop_gradient", "round", "floor", "ceil", "sign", "clamp", "min"}
"""Operations behind which no gradient may be left."""

_OF_PEAKS = {"max", "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "stop_gradient"}

GUARDED = {"log": 0, "sqrt": 0, "rsqrt": 0, "pow": 0, "div": 1, "exp": 0}
"""Operations that are finite on a part of the numbers, with the operand that is to stay in it."""


PASSED = "let_through"
"""What a step is marked with whose gradient has been let through."""


def reached(program: Program, value: int) -> list[int]:
    """The steps that depend on a value, in order."""
    seen, found = {value}, []
    for k, step in enumerate(program.steps):
        if not seen.isdisjoint(step.reads):
            seen.update(step.outputs)
            found.append(k)
    return found


def stopping(program: Program, value: int) -> Iterator[tuple[int, str]]:
    """The steps behind a value that may stop its gradient, in order, with their names.

    The maximum that a softmax takes off is stopped by right.
    """
    makers = {output: step for step in program.steps for output in step.outputs}
    for k in reached(program, value):
        step = program.steps[k]
        of_peak = any(_is_peak(makers, v) for v in step.reads)
        if (step.name in STOPPING and not of_peak) or _is_zeroed(step):
            yield k, step.name


def _is_peak(makers: Mapping[int, Step], value: int) -> bool:
    """Whether a value is a maximum over an axis, in another shape at most, or larger than that."""
    while (step := makers.get(value)) is not None and step.name in _OF_PEAKS and step.reads:
        value = step.reads[-1]
    return step is not None and step.name == "reduce_max"


def _is_zeroed(step: Step) -> bool:
    return step.name == "mul" and any(
        isinstance(one, Constant) and not jnp.any(one.value) for one in step.inputs
    )


def let_through(program: Program, k: int, value: int) -> Program:
    """The program whose step k keeps its value and passes its gradient on: Bengio et al. 2013."""
    behind = {value}.union(*(program.steps[i].outputs for i in reached(program, value)))
    step = program.steps[k]
    side = next(i for i, one in enumerate(step.inputs) if isinstance(one, int) and one in behind)

    def run(*inputs: Any) -> Sequence[Any]:
        (made,) = step.run(*inputs)
        x = inputs[side]
        if jnp.shape(x) != jnp.shape(made) or x.dtype != made.dtype:
            return [made]
        return [x + jax.lax.stop_gradient(made - x)]

    passed = replace(step, run=run, params={**step.params, PASSED: True})
    steps = (passed if i == k else one for i, one in enumerate(program.steps))
    return replace(program, steps=tuple(steps))


def guarded(program: Program, name: str, least: float) -> Program:
    """The program whose operations of one name read no number outside their range.

    It ends at `least`; for `exp` at the number whose exponential is 1/least.
    """
    if name not in GUARDED:
        raise BadInput(f'"{name}" has no guard; {", ".join(GUARDED)} have.')
    runs = {
        k: partial(_guarded, step, least)
        for k, step in enumerate(program.steps)
        if step.name == name
    }
    return _replaced(program, runs)


def _guarded(step: Step, least: float, *inputs: Any) -> Sequence[Any]:
    side = GUARDED[step.name]
    x = inputs[side]
    return step.run(*inputs[:side], _kept(step.name, x, least), *inputs[side + 1 :])


def _kept(name: str, x: Any, least: float) -> Array:
    small = jnp.asarray(least, jnp.result_type(x))
    if name == "exp":
        # The sum of as many as an array has entries is to be finite too, in a narrow format.
        largest = float(_finfo(small.dtype).max) / max(jnp.size(x), 1)
        return jnp.minimum(
            x, jnp.minimum(-jnp.log(small), jnp.asarray(math.log(largest), small.dtype))
        )
    if name == "div":
        return jnp.where(jnp.abs(x) < small, jnp.where(x < 0, -small, small), x)
    return jnp.maximum(x, small)


def changed(
    program: Program, changes: Sequence[Change], slices: Slices, first_param: int
) -> Program:
    """The program with those changes that are of operations.

    Raises:
        BadInput: for an operation that is not there.
    """
    for change in changes:
        if change.call == "guard":
            program = guarded(program, change.pattern, change.value)
        elif change.call == "straight_through":
            name, _, param = change.pattern.partition("@")
            if param not in slices:
                raise BadInput(
                    f'"{change.pattern}" names no operation behind a parameter: round@layer.'
                )
            value = first_param + slices[param][0]
            fits = [k for k, found in stopping(program, value) if found == name]
            if not fits:
                raise BadInput(f'There is no "{name}" behind {param}.')
            program = let_through(program, fits[0], value)
    return program


def _replaced(program: Program, runs: Mapping[int, Callable[..., Sequence[Any]]]) -> Program:
    return replace(
        program,
        steps=tuple(
            replace(step, run=runs[k]) if k in runs else step
            for k, step in enumerate(program.steps)
        ),
    )
