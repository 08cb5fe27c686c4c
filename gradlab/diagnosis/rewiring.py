"""Layers and residual sums of a program changed: a product scaled, a stream added once."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradlab.diagnosis import operations
from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.changes import Change, Slices
from gradlab.diagnosis.dependence import RESHAPING, is_doubled
from gradlab.diagnosis.program import Constant, Program, Step
from gradlab.diagnosis.sums import Residual
from gradlab.errors import BadInput


def rewired(anatomy: Anatomy, changes: Sequence[Change], slices: Slices) -> Program:
    """The program with those changes that are of operations, layers or sums.

    Raises:
        BadInput: for a pattern that fits none.
    """
    program = operations.changed(anatomy.program, changes, slices, anatomy.first_param)
    for change in changes:
        if change.call == "multiply":
            program = _multiplied(anatomy, program, change)
        elif change.call == "single_stream":
            program = _single(anatomy, program, change)
        elif change.call == "add_stream":
            program = _filled(anatomy, program, change)
        elif change.call == "without_activation":
            program = _bare(anatomy, program, change)
    return program


def _multiplied(anatomy: Anatomy, program: Program, change: Change) -> Program:
    fits = [x for x in anatomy.layers if fnmatch.fnmatch(x.name, change.pattern)]
    if not fits:
        raise BadInput(f'"{change.pattern}" fits no layer to multiply.')
    return _with(program, {x.step: _times(program.steps[x.step], change.value) for x in fits})


def _times(step: Step, factor: float) -> Step:
    def run(*inputs: Any) -> Sequence[Any]:
        (made,) = step.run(*inputs)
        return [made * jnp.asarray(factor, made.dtype)]

    return replace(step, run=run)


def _single(anatomy: Anatomy, program: Program, change: Change) -> Program:
    steps = {
        k: step
        for k, step in single_sums(anatomy).items()
        if any(fnmatch.fnmatch(name, change.pattern) for name in _names(anatomy, k))
    }
    if not steps:
        raise BadInput(f'"{change.pattern}" ends no branch whose stream is added more than once.')
    made = {step.outputs: k for k, step in enumerate(program.steps)}
    residuals = anatomy.residuals
    return _with(program, {made[(residuals[k].total,)]: step for k, step in steps.items()})


def _filled(anatomy: Anatomy, program: Program, change: Change) -> Program:
    gaps = {
        gap.end: gap
        for gap in anatomy.gaps
        if fnmatch.fnmatch(anatomy.layers[gap.layer].name, change.pattern)
    }
    if not gaps:
        raise BadInput(f'"{change.pattern}" ends no block that lacks the sum its alike have.')
    return _with(
        program,
        {
            k: _plus(step, gaps[step.outputs[0]].stream)
            for k, step in enumerate(program.steps)
            if step.outputs[0] in gaps
        },
    )


def _plus(step: Step, stream: int) -> Step:
    """The step that adds a stream to what another one makes."""

    def run(*inputs: Any) -> Sequence[Any]:
        *own, state = inputs
        (made,) = step.run(*own)
        return [made + state.astype(made.dtype)]

    return replace(step, inputs=(*step.inputs, stream), run=run)


def _bare(anatomy: Anatomy, program: Program, change: Change) -> Program:
    layers: dict[tuple[int | None, ...], int] = {
        (one.activated.activated,): one.activated.pre
        for one in anatomy.rectified
        if fnmatch.fnmatch(one.activated.name, change.pattern)
    }
    if not layers:
        raise BadInput(f'"{change.pattern}" makes no logits that an activation stands on.')
    kinds = program.types

    def bare(step: Step) -> Step:
        kind = kinds[step.outputs[0]]
        pre = layers[step.outputs]
        return replace(
            step, name="copy", inputs=(pre,), run=lambda value: [value.astype(kind.dtype)]
        )

    steps = enumerate(program.steps)
    return _with(program, {k: bare(step) for k, step in steps if step.outputs in layers})


def _names(anatomy: Anatomy, k: int) -> list[str]:
    """The layers that end the branch of a residual sum."""
    return [anatomy.layers[i].name for i in anatomy.residuals[k].last]


def _with(program: Program, steps: dict[int, Step]) -> Program:
    return replace(program, steps=tuple(steps.get(k, step) for k, step in enumerate(program.steps)))


# ---- what of a stream a sum adds


def stream_factor(anatomy: Anatomy, k: int) -> float:
    """How many times residual sum k adds the state before it: 1 of x + f(x), He et al. 2016."""
    residual, program = anatomy.residuals[k], anatomy.program
    factor, source = _source(program, residual.stream)
    added = next(step.reads for step in program.steps if residual.total in step.outputs)
    if residual.stream not in added:  # it has been changed
        factor = float(source in added)
    inner = _inner(anatomy, residual)
    if inner is None:
        return factor
    own, other = _source(anatomy.program, inner.stream)
    return factor + own if other == source else factor


def single_sums(anatomy: Anatomy) -> dict[int, Step]:
    """The steps that add the stream once, by residual sum, where it is added more often."""
    program = anatomy.program
    made = {v: step for step in program.steps for v in step.outputs}
    found = {}
    for k, residual in enumerate(anatomy.residuals):
        if stream_factor(anatomy, k) <= 1:
            continue
        step = made[residual.total]
        if _inner(anatomy, residual) is not None:
            branch = (residual.branch,)
            found[k] = replace(step, name="copy", inputs=branch, run=lambda value: [value])
            continue
        source = _source(program, residual.stream)[1]
        kind, own = program.types[source], program.types[residual.stream]
        if kind.shape == own.shape and kind.dtype == own.dtype:
            inputs = tuple(source if v == residual.stream else v for v in step.inputs)
            found[k] = replace(step, inputs=inputs)
    return found


def _inner(anatomy: Anatomy, residual: Residual) -> Residual | None:
    """The residual sum that is another one's branch: the stream has been added there."""
    source = _source(anatomy.program, residual.branch)[1]
    return next((one for one in anatomy.residuals if one.total == source), None)


def _source(program: Program, value: int) -> tuple[float, int]:
    """What a state is times a number: the number, and the state."""
    makers = {v: step for step in program.steps for v in step.outputs}
    factor = 1.0
    while (step := makers.get(value)) is not None:
        numbers = [one for one in step.inputs if isinstance(one, Constant)]
        if is_doubled(step):
            factor *= 2
        elif step.name == "mul" and len(step.reads) == len(numbers) == 1:
            if np.size(numbers[0].value) != 1:
                break
            factor *= abs(float(np.asarray(numbers[0].value)))
        elif step.name not in RESHAPING or len(step.reads) != 1:
            break
        value = step.reads[0]
    return (factor, value) if math.isfinite(factor) else (1.0, value)
