"""What is measured: one forward and one backward pass, of which only small numbers are kept.

A zero is added to each state that is watched; the derivative by that zero is the gradient that
arrives there. All lengths are logs of root mean squares, and of norms, which no format limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis import anatomy as anatomies
from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.layers import Layer
from gradlab.diagnosis.program import Constant, evaluate
from gradlab.measuring import leaf_norms
from gradlab.theory import attention

Numbers = dict[str, np.ndarray]

# Below this a logit is masked out, by -inf or by a large negative number.
_MASKED = -1e4


@dataclass(frozen=True)
class Measured:
    """The numbers of one pass.

    Attributes:
        loss: of the batch.
        layers: by layer, `log_weight`, `log_factor` (of what multiplies its product), `log_state`,
            `log_pre` (log rms), `state_spread` (relative variance of the squared entries of its
            input), `mean_pre`, `slope`
            (mean phi'²), `spread` (its relative variance), `flat` (share of units with phi' = 0 on
            the whole batch), `log_gradient` (log of the norm that arrives), `log_median` (of
            examples).
        residuals: by residual sum, `log_stream`, `log_branch`, `log_total`, `log_gradient`.
        gates: by gate, `slope` (mean of the logistic function's slope over its largest, 1/4),
            `mean` and `rms` of its pre-activation.
        softmaxes: by softmax, `load` (mean variance of a row over its critical one), `std`,
            `length` of the longest row and its `critical` standard deviation, `rows`.
        rectified: by activation on logits, `still` (share of them without a slope).
        shifts: by sum with a parameter, `log_added`, `log_state` (log rms).
        params: by parameter, `log_gradient`; by slice where stacked, in `slices`, and by row where
            looked up, in `rows` (log norms).
    """

    loss: float
    layers: Numbers
    residuals: Numbers
    softmaxes: Numbers
    gates: Numbers
    rectified: Numbers
    shifts: Numbers
    params: Numbers
    slices: dict[int, np.ndarray]
    rows: dict[int, np.ndarray]

    @property
    def num_silent(self) -> int:
        """How many parameters, and slices of stacked ones, have no gradient."""
        rows = [self.params["log_gradient"], *self.slices.values()]
        return sum(int(np.sum(np.isneginf(row))) for row in rows)


def compiled(anatomy: Anatomy, batch_size: int | None) -> Callable[..., Measured]:
    """`measure(inputs, factor)`: the numbers of a pass, the loss being multiplied by `factor`.

    The pass is one program; what is measured of its states is a small one for each kind of layer,
    which alike layers share. Inside the pass each of them would be compiled anew.
    """
    run = jax.jit(partial(_pass, anatomy))
    of_layers = _layer_functions(anatomy, batch_size)
    activated = [one.activated for one in anatomy.rectified]
    of_rectified = [(one.pre, jax.jit(partial(_of_rectified, one))) for one in activated]
    layers = anatomy.layers
    stacked = sorted({layer.param for layer in layers if layer.index is not None})

    def measure(inputs: Sequence[Any], factor: float = 1.0) -> Measured:
        value, seen, by_states, by_params = run(list(inputs), factor)

        def read(one: int | Constant) -> Any:
            if isinstance(one, Constant):
                return one.value
            return inputs[one] if one < anatomy.program.num_inputs else seen[str(one)]

        def of_layer(k: int, layer: Layer) -> dict[str, Array]:
            factors = [read(one) for one, _ in layer.factors]
            arrays = (read(layer.weight), read(layer.state), seen[str(layer.pre)])
            return of_layers[k](*arrays, by_states[str(layer.pre)], factors)

        def of_rows(numbers: Iterable[int]) -> dict[int, Array]:
            return {k: _log_norms(by_params[k]) for k in numbers if by_params[k].ndim}

        measured = (
            [of_layer(k, layer) for k, layer in enumerate(layers)],
            [
                _of_residual(read(r.stream), read(r.branch), read(r.total), by_states[str(r.total)])
                for r in anatomy.residuals
            ],
            [_of_softmax(read(s.value), tuple(map(int, s.axes))) for s in anatomy.softmaxes],
            [_of_gate(read(gate.value)) for gate in anatomy.gates],
            [of_one(read(pre)) for pre, of_one in of_rectified],
            [_of_shift(read(shift.added), read(shift.state)) for shift in anatomy.shifts],
            [_of_gradient(gradient) for gradient in by_params],
        )
        loss, tables, slices, rows = jax.device_get(
            (value, measured, of_rows(stacked), of_rows(sorted(anatomy.embedded)))
        )
        table, residuals, softmaxes, gates, rectified, shifts, params = map(_table, tables)
        return Measured(
            float(loss),
            table,
            residuals,
            softmaxes,
            gates,
            rectified,
            shifts,
            params,
            slices,
            rows,
        )

    return measure


def _table(rows: Sequence[dict[str, Any]]) -> Numbers:
    """The numbers of each thing under one name, a column for each name."""
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _layer_functions(
    anatomy: Anatomy, batch_size: int | None
) -> list[Callable[..., dict[str, Array]]]:
    """What measures each layer, compiled once for layers of one kind."""
    known: dict[Any, Callable[..., dict[str, Array]]] = {}
    found = []
    for layer in anatomy.layers:
        divides = tuple(divides for _, divides in layer.factors)
        kind = anatomies.phi_signature(layer, anatomy.program), divides
        if kind not in known:
            known[kind] = jax.jit(partial(_of_layer, layer, batch_size))
        found.append(known[kind])
    return found


def _pass(anatomy: Anatomy, inputs: list[Any], factor: Array) -> tuple[Any, ...]:
    """The loss, the values that are looked at, and the gradients by states and by parameters.

    What went in is not among the values, since it would be copied.
    """
    program, num = anatomy.program, len(anatomy.names)
    first = anatomy.first_param
    watched = {layer.pre for layer in anatomy.layers} | {r.total for r in anatomy.residuals}
    kept = {v for v in watched | _seen(anatomy) if v >= program.num_inputs}
    zeros = {str(v): jnp.zeros(program.types[v].shape, program.types[v].dtype) for v in watched}

    def loss(params: Sequence[Any], zeros: dict[str, Array]) -> tuple[Array, dict[str, Any]]:
        seen: dict[str, Any] = {}

        def at(number: int, value: Any) -> Any:
            if number in watched:
                value = value + zeros[str(number)]
            if number in kept:
                seen[str(number)] = value
            return value

        value = evaluate(program, [*inputs[:first], *params, *inputs[first + num :]], at)
        return jnp.asarray(value), seen

    value, pull, seen = jax.vjp(loss, inputs[first : first + num], zeros, has_aux=True)
    by_params, by_states = pull(jnp.asarray(factor, value.dtype))
    return value, seen, by_states, by_params


def _seen(anatomy: Anatomy) -> set[int]:
    """The values whose numbers are wanted."""
    layers = {v for layer in anatomy.layers for v in (layer.weight, layer.state)}
    layers |= {v for layer in anatomy.layers for v, _ in layer.factors if isinstance(v, int)}
    sums = {v for r in anatomy.residuals for v in (r.stream, r.branch)}
    softmaxes = {softmax.value for softmax in anatomy.softmaxes}
    shifts = {v for s in anatomy.shifts for v in (s.added, s.state)}
    return layers | sums | softmaxes | shifts | {gate.value for gate in anatomy.gates}


def _of_layer(
    layer: Layer,
    batch_size: int | None,
    weight: Array,
    state: Array,
    h: Array,
    gradient: Array,
    factors: Sequence[Array],
) -> dict[str, Array]:
    signs = [-1 if divides else 1 for _, divides in layer.factors]
    sizes = [sign * log_rms(jnp.asarray(x)) for sign, x in zip(signs, factors, strict=True)]
    return {
        "log_weight": log_rms(weight),
        "log_factor": sum(sizes, jnp.zeros(())),
        "log_state": log_rms(state),
        "state_spread": spread(state),
        "log_pre": log_rms(h),
        "mean_pre": jnp.mean(_wide(h)),
        **_slopes(layer, h),
        "log_median": _median(gradient, batch_size),
        "log_gradient": log_norm(gradient),
    }


@jax.jit
def _of_residual(stream: Array, branch: Array, total: Array, gradient: Array) -> dict[str, Array]:
    return {
        "log_stream": log_rms(stream),
        "log_branch": log_rms(branch),
        "log_total": log_rms(total),
        "log_gradient": log_norm(gradient),
    }


@jax.jit
def _of_shift(added: Array, state: Array) -> dict[str, Array]:
    return {"log_added": log_rms(added), "log_state": log_rms(state)}


@jax.jit
def _log_norms(rows: Array) -> Array:
    return jax.vmap(log_norm)(rows)


@jax.jit
def _of_gradient(gradient: Array) -> dict[str, Array]:
    return {"log_gradient": log_norm(gradient)}


def _slopes(layer: Layer, h: Array) -> dict[str, Array]:
    """The mean of phi'(h)², its relative variance, and the share of units where it is 0 throughout.

    nan without a phi.
    """
    phi = anatomies.function(layer)
    if phi is None:
        return dict.fromkeys(("slope", "spread", "flat"), jnp.full((), jnp.nan, _wide(h).dtype))
    slope = _wide(jax.jvp(phi, (h,), (jnp.ones_like(h),))[1])
    axis = _unit_axis(layer, h.shape)
    largest = jnp.max(jnp.abs(slope), axis=tuple(a for a in range(h.ndim) if a != axis), initial=0)
    mean = jnp.mean(jnp.square(slope))
    fourth = jnp.mean(jnp.square(jnp.square(slope)))
    return {
        "slope": mean,
        "spread": fourth / jnp.where(mean > 0, jnp.square(mean), 1) - 1,
        "flat": jnp.mean(largest == 0, dtype=slope.dtype),
    }


def _of_rectified(layer: Layer, h: Array) -> dict[str, Array]:
    phi = anatomies.function(layer)
    assert phi is not None
    slope = jax.jvp(phi, (h,), (jnp.ones_like(h),))[1]
    return {"still": jnp.mean(slope == 0, dtype=_wide(h).dtype)}


def _unit_axis(layer: Layer, shape: tuple[int, ...]) -> int:
    """The axis of a pre-activation that counts units: the last one of their number, if any."""
    fits = [axis for axis, size in enumerate(shape) if size == layer.fan_out]
    return fits[-1] if fits else len(shape) - 1


@partial(jax.jit, static_argnums=1)
def _of_softmax(value: Array, axes: tuple[int, ...]) -> dict[str, Array]:
    wide = _wide(value)
    counted = (wide > _MASKED).astype(wide.dtype)
    length = jnp.sum(counted, axis=axes)
    entries = jnp.where(counted > 0, wide, 0)
    mean = jnp.expand_dims(jnp.sum(entries, axis=axes) / jnp.maximum(length, 1), axes)
    square = jnp.sum(counted * jnp.square(entries - mean), axis=axes)
    variance = square / jnp.maximum(length - 1, 1)  # 0 of a row of one
    load = variance / jnp.square(attention.critical_std(jnp.maximum(length, 2)))
    num = jnp.maximum(jnp.sum((length > 1).astype(wide.dtype)), 1)
    longest = jnp.max(length, initial=0)
    return {
        "load": jnp.sum(load) / num,
        "std": jnp.sqrt(jnp.sum(variance) / num),
        "length": longest,
        "critical": attention.critical_std(jnp.maximum(longest, 2)),
        "rows": num,
    }


@jax.jit
def _of_gate(value: Array) -> dict[str, Array]:
    wide = _wide(value)
    # sigma(h) sigma(-h), which keeps its digits at both ends.
    slope = 4 * jnp.mean(jax.nn.sigmoid(wide) * jax.nn.sigmoid(-wide))
    return {
        "slope": slope,
        "mean": jnp.mean(wide),
        "rms": jnp.sqrt(jnp.mean(jnp.square(wide))),
    }


def _median(gradient: Array, batch_size: int | None) -> Array:
    """The log of the median example's norm, times √examples, as the whole batch's would be."""
    wide = _wide(gradient)
    if not batch_size or not gradient.ndim or gradient.shape[0] != batch_size:
        return jnp.full((), jnp.nan, wide.dtype)
    norms = jax.vmap(log_norm)(gradient)
    return jnp.median(norms) + jnp.log(jnp.sqrt(jnp.asarray(batch_size, wide.dtype)))


def log_norm(x: Array) -> Array:
    """The log of the Euclidean norm; -inf for zeros."""
    return leaf_norms.log_norm(_modulus(x))


def spread(x: Array) -> Array:
    """The relative variance of the squared entries."""
    return leaf_norms.spread(_modulus(x))


def log_rms(x: Array) -> Array:
    """The log of the root of the mean square; -inf for zeros."""
    return log_norm(x) - jnp.log(jnp.asarray(max(x.size, 1), _wide(x).dtype)) / 2


def _wide(x: Array) -> Array:
    x = _modulus(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _modulus(x: Array) -> Array:
    """The array, or the moduli of a complex one, as a diagonal recurrence's states are."""
    return jnp.abs(x) if jnp.iscomplexobj(x) else x
