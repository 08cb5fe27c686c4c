"""All singular values of one example's Jacobian, by the library's own instrument, at any depth.

Where every way from one layer's output to another's leads through one state, the Jacobian is a
product there. So the program is cut at those states into the layers of a chain, and
`gl.spectra.singular_values` takes it: each value to high relative accuracy, with a bound, and nan
where a layer's own rounding leaves nothing of it. The matrix-free estimate stands beside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis import operations, singular
from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.facts import batch_size
from gradlab.diagnosis.program import Constant, Program, Step, evaluate
from gradlab.errors import BadInput
from gradlab.measuring import certificate, spectra
from gradlab.models.chain import Chain

MOST_WIDTH = 512
"""States of more numbers are not cut out: a decomposition costs the cube of it a layer."""

_LONGEST_PERIOD = 8  # of parts that are alike again


@dataclass(frozen=True)
class SingularValues:
    """All singular values of one example's Jacobian, and the largest matrix-free.

    Attributes:
        log: `(width,)`, log sigma (nats), descending: -inf for an exact zero, nan at the end for
            what rounding leaves unknown.
        bound: of first order on the error of each; infinite where none is known.
        widths: of the states at which the Jacobian is a product, `since` and `until` included.
        top: the largest ones of the same Jacobian, matrix-free.
        since, until: the layers between whose outputs the Jacobian is taken.
    """

    log: np.ndarray
    bound: float
    widths: tuple[int, ...]
    top: singular.Singular
    since: str
    until: str

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(found: SingularValues) -> Iterator[str]:
    num, is_known = len(found.log), np.isfinite(found.log)
    yield f"one example's Jacobian from {found.since} to {found.until}"
    within = f"every log within {found.bound:.1g}"
    known = within if math.isfinite(found.bound) else "no bound, since a direction is lost"
    yield f"exact: a product of {len(found.widths) - 1} parts; {known}"
    yield "matrix-free: Lanczos; within the bound beside it"
    yield ""
    yield f"{'':8}{'log sigma, exact':>18}{'matrix-free':>14}{'bound':>10}"
    for k, (value, bound) in enumerate(zip(found.top.values, found.top.bounds, strict=True)):
        log = float(np.log(value)) if value != 0 else -math.inf
        yield f"{k + 1:<8}{found.log[k]:>18.5f}{log:>14.5f}{_relative(bound, value):>10.1g}"
    if is_known.any():
        last = int(np.flatnonzero(is_known)[-1])
        yield f"{last + 1:<8}{found.log[last]:>18.5f}"
    zero, lost = int(np.isneginf(found.log).sum()), int(np.isnan(found.log).sum())
    yield f"of {num}: {int(is_known.sum())} known, {zero} zero, {lost} lost in rounding"


def _relative(bound: float, value: float) -> float:
    return bound / value if value > 0 else math.inf


def alone(arrays: Sequence[Any], example: int) -> list[Any]:
    """A batch of one example; the batch as it is where its arrays share no first axis."""
    num = batch_size(arrays)
    return [leaf[example : example + 1] if num and leaf.ndim else leaf for leaf in arrays]


def check_alone(
    anatomy: Anatomy, inputs: Sequence[Any], since: str | None, until: str | None, example: int
) -> None:
    """Raise unless an example's states depend on no other example's.

    Judged by the gradient at the other examples of one number of its last state, exactly 0.

    Raises:
        BadInput: for an example that there is not, or one that others have a part in (BatchNorm).
    """
    start, end = singular.places(anatomy, since, until)
    source, target = anatomy.layers[start].pre, anatomy.layers[end].pre
    num = anatomy.program.types[source].shape[:1]
    if num != anatomy.program.types[target].shape[:1] or not num:
        return
    if not 0 <= example < num[0]:
        raise BadInput(f"The example is {example}; allowed: 0 to {num[0] - 1}, those of the batch.")
    between = singular.between(anatomy, inputs, source, target)

    def of_example(added: Array) -> Array:
        return jnp.sum(between(added)[example].astype(jnp.float32))

    kind = anatomy.program.types[source]
    gradient = jax.jit(jax.grad(of_example))(jnp.zeros(kind.shape, kind.dtype))
    if bool(jnp.any(jnp.delete(gradient, example, axis=0) != 0)):
        raise BadInput(
            f"Example {example} has no Jacobian of its own: other examples of the batch have a "
            "part in its states, as by BatchNorm; use top_singular_values, of the whole batch."
        )


def singular_values(
    anatomy: Anatomy, inputs: Sequence[Any], k: int, since: str | None, until: str | None
) -> SingularValues:
    """All singular values between two layers' outputs, with the k largest matrix-free.

    Raises:
        BadInput: for layers that do not follow one another, and states that are too wide.
    """
    start, end = singular.places(anatomy, since, until)
    source, target = anatomy.layers[start].pre, anatomy.layers[end].pre
    states = _states(anatomy, source, target)
    widths = tuple(math.prod(anatomy.program.types[v].shape) for v in states)
    if max(widths) > MOST_WIDTH:
        raise BadInput(
            f"A state between {anatomy.layers[start].name} and {anatomy.layers[end].name} has "
            f"{max(widths)} numbers an example; all singular values are given of at most "
            f"{MOST_WIDTH}: use top_singular_values, or name other layers."
        )
    parts = _parts(anatomy.program, states)
    kept = sorted({v for part in parts for v in part.captured} | {source})
    values = dict(zip(kept, _values(anatomy.program, inputs, kept), strict=True))
    model = [Chain(part.layer, [values[v][None] for v in part.captured]) for part in parts]
    x = values[source].ravel().astype(jnp.promote_types(values[source].dtype, jnp.float32))
    depths = (len(model),)
    return SingularValues(
        np.asarray(spectra.log_singular_values(model, x, depths)[0], float),
        float(certificate.singular_value_bound(model, x, depths)[0]),
        widths,
        singular.top(anatomy, inputs, k, since, until),
        anatomy.layers[start].name,
        anatomy.layers[end].name,
    )


def _values(program: Program, inputs: Sequence[Any], wanted: Sequence[int]) -> list[Array]:
    """Some values of a run, each an array of its own."""

    @jax.jit
    def run(inputs: list[Any]) -> list[Array]:
        seen: dict[int, Any] = {}

        def at(number: int, value: Any) -> Any:
            seen[number] = value
            return value

        evaluate(program, inputs, at)
        return [jnp.asarray(seen[number]) for number in wanted]

    return run(list(inputs))


# ---- where the program is cut


def _states(anatomy: Anatomy, source: int, target: int) -> list[int]:
    """The states, from source to target, that every way between them leads through.

    Of these, outputs of layers and residual sums.
    """
    usual = {layer.pre for layer in anatomy.layers} | {r.total for r in anatomy.residuals}
    steps = _between(anatomy.program, source, target)
    last = {v: k for k, step in enumerate(steps) for v in step.reads}
    live, found = {source}, [source]
    for k, step in enumerate(steps):
        live |= set(step.outputs)
        live = {v for v in live if last.get(v, -1) > k or v == target}
        if len(live) == 1 and live & usual and live != {target}:
            found += live
    return [*found, target]


def _between(program: Program, source: int, target: int) -> list[Step]:
    """The steps that depend on one value and that another depends on, in order."""
    steps = [program.steps[k] for k in operations.reached(program, source)]
    wanted, found = {target}, []
    for step in reversed(steps):
        if wanted & set(step.outputs):
            wanted |= set(step.reads)
            found.append(step)
    if not any(source in step.reads for step in found):
        raise BadInput("The second layer does not depend on the first one.")
    return found[::-1]


@dataclass(frozen=True)
class _Part:
    """A piece of a program between two states, and the values that it captures."""

    layer: Callable[[Any, Array], Array]
    captured: tuple[int, ...]


def _parts(program: Program, states: Sequence[int]) -> list[_Part]:
    """The parts between states; of alike parts that come by turns a whole period is one.

    Neighbours that are alike are one loop, so that little is compiled.
    """

    def by(period: int) -> list[_Part]:
        inner = states[period:-1:period] if len(states) > 2 else []
        ends = [states[0], *inner, states[-1]]
        return [_part(program, a, b) for a, b in pairwise(dict.fromkeys(ends))]

    tried = [by(period) for period in range(1, _LONGEST_PERIOD + 1)]
    return min(tried, key=_num_kinds)


def _num_kinds(parts: Sequence[_Part]) -> int:
    """How many runs of neighbours that are alike there are."""
    return 1 + sum(a.layer != b.layer for a, b in pairwise(parts))


def _part(program: Program, start: int, end: int) -> _Part:
    steps = _between(program, start, end)
    made = {v for step in steps for v in step.outputs} | {start}
    captured = tuple(dict.fromkeys(v for step in steps for v in step.reads if v not in made))
    return _Part(_Piece(program, tuple(steps), captured, start, end), captured)


class _Piece:
    """A layer function made of a piece of a program: equal pieces are equal functions."""

    def __init__(
        self, program: Program, steps: tuple[Step, ...], captured: tuple[int, ...], a: int, b: int
    ) -> None:
        self.steps, self.captured, self.start, self.end = steps, captured, a, b
        self.type = program.types[a]
        self.key = _key(program, steps, captured, a, b)

    def __call__(self, params: Any, z: Array) -> Array:
        values = dict(zip(self.captured, params, strict=True))
        values[self.start] = z.reshape(self.type.shape).astype(self.type.dtype)
        for step in self.steps:
            given = (one.value if isinstance(one, Constant) else values[one] for one in step.inputs)
            values.update(zip(step.outputs, step.run(*given), strict=True))
        return values[self.end].ravel().astype(z.dtype)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Piece) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _key(
    program: Program, steps: Sequence[Step], captured: Sequence[int], start: int, end: int
) -> Hashable:
    """Equal for pieces that do the same steps with values of the same kinds."""
    place = {v: k for k, v in enumerate((start, *captured))}
    for step in steps:
        place |= {v: len(place) + k for k, v in enumerate(step.outputs)}

    def of(one: int | Constant) -> Hashable:
        return place[one] if isinstance(one, int) else str(one.value)

    rows = [
        (step.name, tuple(map(of, step.inputs)), place[step.outputs[0]], _plain(step.params))
        for step in steps
    ]
    kinds = [(program.types[v].shape, str(program.types[v].dtype)) for v in place]
    return tuple(rows), tuple(kinds), place[end]


def _plain(params: dict[str, Any]) -> str:
    """An operation's parameters in words, without the addresses of functions."""
    return re.sub(r"0x[0-9a-f]+", "", str(sorted(params.items(), key=lambda item: item[0])))
