"""How long a loop's state lasts: what of it the direct way keeps, a step and over all steps.

`c' = f c + i g` keeps f of c, as `h' = (1 - z) n + z h` keeps z and a diagonal recurrence its
eigenvalue. Over T steps it keeps the product (Tallec and Ollivier 2018, section 2: a memory of
1/(1 - f) steps). Loops are run as loops here, opened or not, so that their length costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.program import Body, Constant, Loop, Program, Step, body_of, evaluate
from gradlab.measuring import leaf_norms

_KEPT_AS_IT_IS = {"convert_element_type", "copy", "copy_p", "name", "optimization_barrier"}

Values = dict[int, Any]


@dataclass(frozen=True)
class Memory:
    """What one state of a loop keeps.

    Attributes:
        num_steps: of the loop.
        log_kept: nats, of the entry of the state that keeps most over all steps.
        log_gradient: nats, of the gradient at the first state over the largest at any.
        param: the number of the parameter that sets it, a vector where there is one, or None.
        part: the slice of that vector which does, or None for all.
        sign: whether a larger parameter keeps more (1) or less (-1).
    """

    num_steps: int
    log_kept: float
    log_gradient: float
    param: int | None
    part: tuple[int, int] | None
    sign: float


@dataclass(frozen=True)
class _Time:
    """A loop over time: its opened body, and the carries that have a direct way."""

    loop: Loop
    body: Body
    states: tuple[int, ...]

    @property
    def num_consts(self) -> int:
        return int(self.loop.params["num_consts"])

    @property
    def num_carry(self) -> int:
        return int(self.loop.params["num_carry"])

    @property
    def num_steps(self) -> int:
        return int(self.loop.params["length"])


def recalled(anatomy: Anatomy) -> Callable[[Sequence[Any]], list[Memory]] | None:
    """`recall(inputs)`: the memories of the program's loops over time; None where it has none."""
    times = list(_times(anatomy))
    if not times:
        return None
    program = _rolled(anatomy.program, times)
    kept = jax.jit(partial(_kept, anatomy, program, times))
    arriving = jax.jit(partial(_arriving, program, times))

    def recall(inputs: Sequence[Any]) -> list[Memory]:
        rows, pulls = jax.device_get(kept(list(inputs)))
        gradients = jax.device_get(arriving(list(inputs)))
        places = [(k, j) for k, time in enumerate(times) for j in range(len(time.states))]
        return [
            Memory(times[k].num_steps, float(rows[k][j]), _ratio(gradients[k]), *_setter(pulls[i]))
            for i, (k, j) in enumerate(places)
        ]

    return recall


def _ratio(logs: np.ndarray) -> float:
    """The first log norm less the largest."""
    largest = float(np.max(logs))
    return float(logs[0]) - largest if math.isfinite(largest) else math.nan


def _setter(pulls: Sequence[np.ndarray]) -> tuple[int | None, tuple[int, int] | None, float]:
    """The parameter by which what is kept changes most, a vector before a matrix."""
    sizes = [float(np.abs(np.sum(pull))) if np.isfinite(pull).all() else 0.0 for pull in pulls]
    if not any(sizes):
        return None, None, 1.0
    vectors = [k for k, pull in enumerate(pulls) if pull.ndim == 1 and sizes[k] > 0]
    param = max(vectors or range(len(pulls)), key=lambda k: sizes[k])
    pull = pulls[param]
    at = np.flatnonzero(pull)
    low, high = int(at[0]), int(at[-1]) + 1
    is_part = pull.ndim == 1 and len(at) == high - low < len(pull)
    return param, (low, high) if is_part else None, float(np.sign(np.sum(pull)))


# ---- which loops, and which of their states


def _times(anatomy: Anatomy) -> Iterator[_Time]:
    """The innermost loops that read what depends on the batch, step by step."""
    loops = anatomy.loops
    for loop in loops:
        holds_other = any(o is not loop and set(o.inside) < set(loop.inside) for o in loops)
        if holds_other:
            continue
        body = body_of(loop)
        time = _Time(loop, body, ())
        states = tuple(j for j in range(time.num_carry) if _has_way(time, j))
        if states:
            yield replace(time, states=states)


def _has_way(time: _Time, j: int) -> bool:
    """Whether carry j has a direct way through the body on which it is multiplied."""
    start, body = time.num_consts + j, time.body
    kind = body.types[start]
    if not jnp.issubdtype(kind.dtype, jnp.inexact) or kind.size < 2:
        return False
    on_way, scaled = {start}, set[int]()
    for step in body.steps:
        given = [v for v in step.reads if v in on_way]
        out = step.outputs[0]
        if given and _passes(step, on_way) and body.types[out].shape == kind.shape:
            on_way.add(out)
            others = [v for v in step.reads if v not in on_way]
            if scaled.intersection(given) or (step.name in {"mul", "div"} and others):
                scaled.add(out)
    return body.outputs[j] in scaled


def _passes(step: Step, on_way: Any) -> bool:
    """Whether a step is linear in what is on the way, entry by entry."""
    if step.name == "div":
        return step.inputs[1] not in on_way
    if step.name == "select_n":
        return step.inputs[0] not in on_way
    return step.name in {"add", "add_any", "sub", "mul", "neg", *_KEPT_AS_IT_IS}


def _coefficients(body: Body, values: Values, start: int) -> Values:
    """The derivative of each value by the one at `start` along the direct way, entry by entry."""
    shape = body.types[start].shape
    found: Values = {start: jnp.ones_like(values[start])}
    for step in body.steps:
        out = step.outputs[0]
        is_on = any(v in found for v in step.reads) and _passes(step, found)
        if is_on and body.types[out].shape == shape:
            found[out] = _derivative(step, values, found)
    return found


def _derivative(step: Step, values: Values, found: Values) -> Any:
    read = partial(_read, values)
    by = [found.get(one, 0.0) if isinstance(one, int) else 0.0 for one in step.inputs]
    if step.name in {"add", "add_any"}:
        return by[0] + by[1]
    if step.name == "sub":
        return by[0] - by[1]
    if step.name == "mul":
        return by[0] * read(step.inputs[1]) + read(step.inputs[0]) * by[1]
    if step.name == "div":
        return by[0] / read(step.inputs[1])
    if step.name == "neg":
        return -by[0]
    if step.name == "select_n":
        zero = jnp.zeros_like(values[step.outputs[0]])
        return jax.lax.select_n(read(step.inputs[0]), *(zero + case for case in by[1:]))
    return by[0]


def _read(values: Values, one: int | Constant) -> Any:
    return one.value if isinstance(one, Constant) else values[one]


# ---- loops run as loops


def _rolled(program: Program, times: Sequence[_Time]) -> Program:
    """The program with those loops closed, each one step named by its number."""
    place = {v: k for k, time in enumerate(times) for v in time.loop.inside}
    place |= {
        v: k
        for k, time in enumerate(times)
        if not time.loop.inside
        for v in time.loop.outputs
        if isinstance(v, int)
    }
    known = {*range(program.num_inputs)}
    steps: list[Step] = []
    done = set[int]()
    for step in program.steps:
        k = place.get(step.outputs[0])
        if k is None:
            steps.append(step)
            known.update(step.outputs)
        elif k not in done:
            done.add(k)
            steps.append(_closed(times[k], k, known))
            known.update(steps[-1].outputs)
    return replace(program, steps=tuple(steps))


def _closed(time: _Time, k: int, known: set[int]) -> Step:
    """A loop as one step; what nothing needs, and has not been kept, is 0 there."""
    types = time.body.types
    kinds = [types[i] for i in range(time.num_consts + time.num_carry)]
    sliced = types[time.num_consts + time.num_carry : time.body.num_inputs]
    kinds += [kind.update(shape=(time.num_steps, *kind.shape)) for kind in sliced]
    inputs = tuple(
        Constant(jnp.zeros(kind.shape, kind.dtype))
        if isinstance(one, int) and one not in known
        else one
        for one, kind in zip(time.loop.inputs, kinds, strict=True)
    )
    new = [i for i, one in enumerate(time.loop.outputs) if _is_new(one, known)]
    outputs = tuple(time.loop.outputs[i] for i in new)

    def run(*given: Any) -> Sequence[Any]:
        made, _ = _run(time, given, None, is_cut=False)
        return [made[i] for i in new]

    numbers = tuple(one for one in outputs if isinstance(one, int))
    return Step(f"loop {k}", inputs, numbers, run)


def _is_new(one: int | Constant, known: set[int]) -> bool:
    return isinstance(one, int) and one not in known


def _run(
    time: _Time, given: Sequence[Any], added: Sequence[Any] | None, is_cut: bool
) -> tuple[list[Any], list[Array]]:
    """A loop's outputs, and by state the sum over steps of the log of what each entry keeps.

    `added`, by state and step, is added to each new state; `is_cut` stops the gradient from step to
    step.
    """
    num_consts, num_carry = time.num_consts, time.num_carry
    given = list(map(jnp.asarray, given))
    consts, carry = given[:num_consts], given[num_consts : num_consts + num_carry]
    sums = [jnp.zeros(carry[j].shape, jnp.float32) for j in time.states]

    def turn(state: Any, sliced: Any) -> Any:
        carry, sums = state
        extra, parts = sliced
        if is_cut:
            carry = list(map(jax.lax.stop_gradient, carry))
        values: Values = dict(enumerate([*consts, *carry, *parts]))
        for step in time.body.steps:
            made = step.run(*(_read(values, one) for one in step.inputs))
            values.update(zip(step.outputs, made, strict=True))
        outputs = [jnp.asarray(_read(values, one)) for one in time.body.outputs]
        kept = []
        for i, j in enumerate(time.states):
            found = _coefficients(time.body, values, num_consts + j)
            by = next(found[one] for one in time.body.outputs[j : j + 1] if isinstance(one, int))
            kept.append(sums[i] + jnp.log(jnp.abs(by)).astype(jnp.float32))
            if extra is not None:
                outputs[j] = outputs[j] + extra[i]
        kinds = [c.dtype for c in carry]
        carry = [o.astype(kind) for o, kind in zip(outputs[:num_carry], kinds, strict=True)]
        return (carry, kept), outputs[num_carry:]

    (carry, kept), rows = jax.lax.scan(
        turn,
        (carry, sums),
        (added, given[num_consts + num_carry :]),
        length=time.num_steps,
        reverse=bool(time.loop.params["reverse"]),
    )
    return [*carry, *rows], kept


# ---- what is measured


def _kept(
    anatomy: Anatomy, program: Program, times: Sequence[_Time], inputs: list[Any]
) -> tuple[list[list[Array]], list[list[Array]]]:
    """By loop and state, what its longest entry keeps; and the mean's derivative by parameters."""
    first, num = anatomy.first_param, len(anatomy.names)

    def sums(params: Sequence[Any]) -> list[list[Array]]:
        found: dict[int, list[Array]] = {}

        def run(k: int, *given: Any) -> Sequence[Any]:
            made, found[k] = _run(times[k], given, None, is_cut=True)
            return made

        evaluate(
            _with_runs(program, times, run), [*inputs[:first], *params, *inputs[first + num :]]
        )
        return [found[k] for k in range(len(times))]

    params = inputs[first : first + num]
    rows, pull = jax.vjp(sums, params)
    flat, tree = jax.tree_util.tree_flatten(rows)
    pulls = []
    for i in range(len(flat)):
        by = [
            jnp.ones_like(x) / x.size if i == k else jnp.zeros_like(x) for k, x in enumerate(flat)
        ]
        (found,) = pull(jax.tree_util.tree_unflatten(tree, by))
        pulls.append(found)
    return [[jnp.max(x) for x in row] for row in rows], pulls


def _arriving(program: Program, times: Sequence[_Time], inputs: list[Any]) -> list[Array]:
    """By loop, the log norm of the gradient that arrives at its states after each step."""

    def loss(added: list[list[Array]]) -> Array:
        def run(k: int, *given: Any) -> Sequence[Any]:
            return _run(times[k], given, added[k], is_cut=False)[0]

        return jnp.asarray(evaluate(_with_runs(program, times, run), inputs))

    def zeros(time: _Time) -> list[Array]:
        kinds = [time.body.types[time.num_consts + j] for j in time.states]
        return [jnp.zeros((time.num_steps, *kind.shape), kind.dtype) for kind in kinds]

    gradients = jax.grad(loss)([zeros(time) for time in times])
    return [_log_norms(time, rows) for time, rows in zip(times, gradients, strict=True)]


def _log_norms(time: _Time, rows: Sequence[Array]) -> Array:
    logs = [jax.vmap(lambda x: leaf_norms.log_norm(jnp.abs(x)))(row) for row in rows]
    total = jax.nn.logsumexp(2 * jnp.stack(logs), axis=0) / 2
    return total[::-1] if time.loop.params["reverse"] else total


def _with_runs(
    program: Program, times: Sequence[_Time], run: Callable[..., Sequence[Any]]
) -> Program:
    """The rolled program whose loops run so."""
    steps = []
    for step in program.steps:
        if step.name.startswith("loop "):
            k = int(step.name.split()[1])
            steps.append(replace(step, run=partial(_picked, run, times[k], k, step.outputs)))
        else:
            steps.append(step)
    return replace(program, steps=tuple(steps))


def _picked(
    run: Callable[..., Sequence[Any]],
    time: _Time,
    k: int,
    outputs: tuple[int, ...],
    *given: Any,
) -> list[Any]:
    made = run(k, *given)
    return [made[time.loop.outputs.index(number)] for number in outputs]
