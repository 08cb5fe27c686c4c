"""What is measured: one forward and one backward pass, of which only small numbers are kept.

A zero is added to each state that is watched; the derivative by that zero is the gradient that
arrives there. All lengths are logs of root mean squares, and of norms, which no format limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
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
from gradlab.diagnosis.program import evaluate
from gradlab.measuring import leaf_norms
from gradlab.theory import attention

Numbers = dict[str, np.ndarray]

# Below this a logit is masked out, by -inf or by a large negative number.
_MASKED = -1e4

# Arrays of more entries are not put beside each other, which would copy them.
_LARGE = 2**19


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
            examples), `zeros` (share of entries of the gradient that are 0), `largest`.
        residuals: by residual sum, `log_stream`, `log_branch`, `log_total`, `log_gradient`.
        gates: by gate, `slope` (mean of the logistic function's slope over its largest, 1/4),
            `mean` and `rms` of its pre-activation.
        softmaxes: by softmax, `load` (mean variance of a row over its critical one), `std`,
            `length`.
        rectified: by activation on logits, `still` (share of them without a slope).
        shifts: by sum with a parameter, `log_added`, `log_state` (log rms).
        params: by parameter, `log_gradient`, `zeros`, `largest`; by slice where stacked, in
            `slices`, and by row where looked up, in `rows` (log norms).
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
    """`measure(inputs, factor)`: the numbers of a pass, the loss being multiplied by `factor`."""
    run = jax.jit(partial(_pass, anatomy, batch_size))

    def measure(inputs: Sequence[Any], factor: float = 1.0) -> Measured:
        loss, *rest = jax.device_get(run(list(inputs), factor))
        return Measured(float(loss), *rest)

    return measure


def _pass(
    anatomy: Anatomy, batch_size: int | None, inputs: list[Any], factor: Array
) -> tuple[Any, ...]:
    program, num = anatomy.program, len(anatomy.names)
    first = anatomy.first_param
    watched = {layer.pre for layer in anatomy.layers} | {r.total for r in anatomy.residuals}
    kept = watched | _seen(anatomy)
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

    params = inputs[first : first + num]
    value, pull, seen = jax.vjp(loss, params, zeros, has_aux=True)
    by_params, by_states = pull(jnp.asarray(factor, value.dtype))
    # What is measured is not mixed with the model's own operations, which would compile for long.
    seen, by_states, by_params = jax.lax.optimization_barrier((seen, by_states, by_params))
    layers, residuals = anatomy.layers, anatomy.residuals
    pres = [(seen[str(layer.pre)], by_states[str(layer.pre)]) for layer in layers]
    kinds = [anatomies.phi_signature(layer, program) for layer in layers]
    return (
        value,
        {
            "log_weight": _logs([seen[str(layer.weight)] for layer in layers]),
            "log_factor": jnp.stack([_factor(layer, seen) for layer in layers])
            if layers
            else jnp.zeros(0),
            "log_state": _logs([seen[str(layer.state)] for layer in layers]),
            "state_spread": _logs([seen[str(layer.state)] for layer in layers], spread),
            **_grouped(
                lambda k, h, gradient: _of_layer(layers[k], h, gradient, batch_size), pres, kinds
            ),
        },
        {
            "log_stream": _logs([seen[str(r.stream)] for r in residuals]),
            "log_branch": _logs([seen[str(r.branch)] for r in residuals]),
            "log_total": _logs([seen[str(r.total)] for r in residuals]),
            "log_gradient": _logs([by_states[str(r.total)] for r in residuals], log_norm),
        },
        _grouped(
            lambda k, value: _of_softmax(value, anatomy.softmaxes[k].axes),
            [(seen[str(s.value)],) for s in anatomy.softmaxes],
            [s.axes for s in anatomy.softmaxes],
        ),
        _grouped(lambda _, h: _of_gate(h), [(seen[str(g.value)],) for g in anatomy.gates]),
        {
            "still": jnp.asarray(
                [_still(r.activated, seen[str(r.activated.pre)]) for r in anatomy.rectified]
            )
        },
        {
            "log_added": _logs([seen[str(s.added)] for s in anatomy.shifts]),
            "log_state": _logs([seen[str(s.state)] for s in anatomy.shifts]),
        },
        _grouped(lambda _, g: _of_gradient(g), [(g,) for g in by_params]),
        {
            k: jax.vmap(log_norm)(by_params[k])
            for k in sorted({layer.param for layer in layers if layer.index is not None})
        },
        {
            k: jax.vmap(log_norm)(by_params[k])
            for k in sorted(anatomy.embedded)
            if by_params[k].ndim
        },
    )


def _seen(anatomy: Anatomy) -> set[int]:
    """The values whose numbers are wanted."""
    layers = {v for layer in anatomy.layers for v in (layer.weight, layer.state)}
    layers |= {v for layer in anatomy.layers for v, _ in layer.factors if isinstance(v, int)}
    sums = {v for r in anatomy.residuals for v in (r.stream, r.branch)}
    softmaxes = {softmax.value for softmax in anatomy.softmaxes}
    shifts = {v for s in anatomy.shifts for v in (s.added, s.state)}
    return layers | sums | softmaxes | shifts | {gate.value for gate in anatomy.gates}


def _logs(arrays: Sequence[Array], function: Callable[[Array], Array] | None = None) -> Array:
    """The log rms, or another number, of each array."""
    chosen = function or log_rms
    return _grouped(lambda _, x: {"x": chosen(x)}, [(x,) for x in arrays]).get("x", jnp.zeros(0))


def _grouped(
    function: Callable[..., dict[str, Array]],
    rows: Sequence[tuple[Array, ...]],
    kinds: Sequence[Any] | None = None,
) -> dict[str, Array]:
    """`function(k, *row)` of every row; those of one kind and shape at once, if they are small.

    One program for alike layers is what keeps compilation short.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for k, row in enumerate(rows):
        large = max(x.size for x in row) > _LARGE
        shapes = tuple((x.shape, str(x.dtype)) for x in row)
        groups[k if large else (kinds[k] if kinds else None, shapes)].append(k)
    order = [k for members in groups.values() for k in members]
    parts = []
    for members in groups.values():
        columns = [jnp.stack(column) for column in zip(*(rows[k] for k in members), strict=True)]
        parts.append(jax.vmap(partial(function, members[0]))(*columns))
    if not parts:
        return {}
    back = np.argsort(order)
    return {key: jnp.concatenate([part[key] for part in parts])[back] for key in parts[0]}


def _of_layer(layer: Layer, h: Array, gradient: Array, batch_size: int | None) -> dict[str, Array]:
    return {
        "log_pre": log_rms(h),
        "mean_pre": jnp.mean(_wide(h)),
        **_slopes(layer, h),
        "log_median": _median(gradient, batch_size),
        **_of_gradient(gradient),
    }


def _factor(layer: Layer, seen: dict[str, Any]) -> Array:
    """The log of the root mean square of what multiplies a layer's product."""
    total = jnp.zeros(())
    for one, divides in layer.factors:
        value = seen[str(one)] if isinstance(one, int) else jnp.asarray(one.value)
        total = total + (-1 if divides else 1) * log_rms(value)
    return total


def _of_gradient(gradient: Array) -> dict[str, Array]:
    size = jnp.abs(_wide(gradient))
    largest = jnp.max(size, initial=0.0)
    return {
        "log_gradient": log_norm(gradient),
        "zeros": jnp.mean(size == 0, dtype=size.dtype),
        "largest": largest,
    }


def _slopes(layer: Layer, h: Array) -> dict[str, Array]:
    """The mean of phi'(h)², its relative variance, and the share of units where it is 0 throughout.

    nan without a phi.
    """
    phi = anatomies.function(layer)
    if phi is None:
        return dict.fromkeys(("slope", "spread", "flat"), jnp.full((), jnp.nan, _wide(h).dtype))
    slope = _wide(jax.jvp(phi, (h,), (jnp.ones_like(h),))[1])
    axis = _unit_axis(layer, h.shape)
    flat = jnp.all(slope == 0, axis=tuple(a for a in range(h.ndim) if a != axis))
    mean = jnp.mean(jnp.square(slope))
    fourth = jnp.mean(jnp.square(jnp.square(slope)))
    return {
        "slope": mean,
        "spread": fourth / jnp.where(mean > 0, jnp.square(mean), 1) - 1,
        "flat": jnp.mean(flat, dtype=slope.dtype),
    }


def _still(layer: Layer, h: Array) -> Array:
    """The share of pre-activations at which phi has no slope."""
    phi = anatomies.function(layer)
    assert phi is not None
    slope = jax.jvp(phi, (h,), (jnp.ones_like(h),))[1]
    return jnp.mean(slope == 0, dtype=_wide(h).dtype)


def _unit_axis(layer: Layer, shape: tuple[int, ...]) -> int:
    """The axis of a pre-activation that counts units: the last one of their number, if any."""
    fits = [axis for axis, size in enumerate(shape) if size == layer.fan_out]
    return fits[-1] if fits else len(shape) - 1


def _of_softmax(value: Array, axes: tuple[int, ...]) -> dict[str, Array]:
    axes = tuple(int(axis) for axis in axes)
    wide = _wide(value)
    counted = wide > _MASKED
    length = jnp.sum(counted, axis=axes, keepdims=True)
    mean = jnp.sum(jnp.where(counted, wide, 0), axis=axes, keepdims=True) / jnp.maximum(length, 1)
    square = jnp.sum(jnp.where(counted, jnp.square(wide - mean), 0), axis=axes, keepdims=True)
    rows = length > 1
    variance = jnp.where(rows, square / jnp.maximum(length - 1, 1), 0)
    load = jnp.where(rows, variance / attention.critical_std(jnp.maximum(length, 2)) ** 2, 0)
    num = jnp.maximum(jnp.sum(rows), 1)
    return {
        "load": jnp.sum(load) / num,
        "std": jnp.sqrt(jnp.sum(variance) / num),
        "length": jnp.max(length),
        "rows": num,
    }


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
