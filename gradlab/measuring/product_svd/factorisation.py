"""A whole chain taken into `L diag(d) U`, with no more digits than it turns out to need.

Layers are taken in in working precision until one would lose something, which is refined or
eliminated in double words. At its end the chain is gone through once more, at a higher level of
precision, if some ratio of scales has risen far, which amplifies the rounding of all layers in
between, or if rounding has turned the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.arithmetic import scaled
from gradlab.measuring import loops
from gradlab.measuring.product_svd import extended, factors, ratios, thresholds, trial
from gradlab.measuring.product_svd.extended import Extended
from gradlab.measuring.product_svd.factors import Factors, Step
from gradlab.measuring.product_svd.ratios import Ratios
from gradlab.measuring.product_svd.trial import Trial
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

# From the factors after a layer, its step, and what was observed before, to what is observed.
Observe = Callable[[Factors, Step, Any], Any]

# From a layer's number, the state after it and what is stored, to what is stored.
Keep = Callable[[Array, "_State", Any], Any]


class _State(NamedTuple):
    """After some layers: the state of the chain, its product, and what was observed on the way.

    `spent` is what layers in working precision may have added to the error so far (nats), and
    `largest_turn` the most by which rounding has turned the range, where no layer was on trial.
    """

    z: Array
    extended: Extended
    ratios: Ratios
    spent: Array
    largest_turn: Array
    observed: Any


class _How(NamedTuple):
    """How a segment is gone through, with the least width before it."""

    observe: Observe | None
    store: Keep | None
    level: Array
    narrowest: int


def most_columns(model: Model, x: Array) -> int:
    """The most columns that the factors of a chain have."""
    widths = np.array(chain.widths(model, x))
    return max(map(factors.num_columns, np.minimum.accumulate(widths).tolist(), widths.tolist()))


def factorise(
    model: Model, x: Array, depths: Sequence[int], observe: Observe | None, observed: Any
) -> tuple[Factors, Any]:
    """`(factors, observed)` as they stand at every depth asked for, `(num_depths, ...)`.

    The factors are padded with zeros to the largest width and `most_columns`.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
        observe: `observed = observe(factors, step, observed)` is called at every layer, or None.
        observed: what it starts from, a pytree of arrays.
    """
    parts, num_layers = chain.checked(model, x), chain.depth(model)
    wanted = _checked(depths, num_layers)
    shape = most_columns(model, x), max(chain.widths(model, x))
    # A few roundings a layer in each of the directions.
    is_shallow = num_layers * shape[1] * scaled.eps(x.dtype) <= thresholds.ERROR_BUDGET
    lowest = thresholds.WORKING if is_shallow else thresholds.REFINED

    none = jnp.zeros((), x.dtype)
    start = _State(x, extended.start(x), ratios.start(x), none, none, observed)
    slots = np.full(num_layers, len(wanted))
    slots[np.array(wanted) - 1] = np.arange(len(wanted))
    # One slot more, for what nobody asked for.
    nothing = jax.tree.map(
        lambda leaf: jnp.zeros((len(wanted) + 1, *leaf.shape), leaf.dtype),
        (factors.padded(start.extended.factors, shape), observed),
    )

    def attempt(level: Array) -> tuple[Any, Array]:
        state, stored, num_before, narrowest = start, nothing, 0, x.size
        for segment in parts:
            own = slots[num_before : num_before + segment.depth]
            # Where nothing is asked for on the way, nothing is stored there.
            is_last_only = (own[:-1] == len(wanted)).all()
            store = None if is_last_only else partial(_put, shape, jnp.asarray(own))
            go = _on_trial if is_shallow and segment.depth > 1 else _in_extended_precision
            how = _How(observe, store, level, narrowest)
            state, stored = go(segment, how, (state, stored))
            narrowest = min(narrowest, state.z.size)
            if is_last_only and own[-1] < len(wanted):
                stored = _put(shape, own, segment.depth - 1, state, stored)
            num_before += segment.depth
        return stored, _level_needed(state)

    # How many digits it takes is known at the end: if there were too few, then once more.
    _, (stored, _) = jax.lax.while_loop(
        lambda state: state[0] < state[1][1],
        lambda state: (state[1][1], attempt(state[1][1])),
        (jnp.asarray(-1, jnp.int32), (nothing, jnp.asarray(lowest, jnp.int32))),
    )
    at_each: tuple[Factors, Any] = jax.tree.map(lambda leaf: leaf[:-1], stored)
    return at_each


def _checked(depths: Sequence[int], num_layers: int) -> list[int]:
    wanted = list(depths)
    if not wanted or wanted != sorted(set(wanted) & set(range(1, num_layers + 1))):
        raise ValueError(
            f"depths must be ascending whole numbers from 1 to {num_layers}, not {wanted}."
        )
    return wanted


def _put(shape: tuple[int, int], slots: Any, layer: Any, state: _State, stored: Any) -> Any:
    """What is stored, with the state after a layer in its slot."""
    now = factors.padded(state.extended.factors, shape), state.observed
    return jax.tree.map(lambda every, one: every.at[slots[layer]].set(one), stored, now)


def _in_extended_precision(segment: Chain, how: _How, carry: Any) -> Any:
    """Through a segment, every layer of it in extended precision."""

    def advance(carry: Any, at_layer: Any) -> tuple[Any, None]:
        layer, params = at_layer
        state, stored = carry
        state = _one_extended(segment.layer, how, params, state)
        return (state, how.store(layer, state, stored) if how.store else stored), None

    layers = Chain(segment.layer, (jnp.arange(segment.depth), segment.params))
    return loops.scan(advance, carry, layers)[0]


def _one_extended(layer: Layer, how: _How, params: Any, state: _State) -> _State:
    z, after = extended.advance(
        layer,
        params,
        state.z,
        state.extended,
        state.ratios,
        how.level,
        how.narrowest,
        how.observe is not None,
    )
    observed = state.observed
    if how.observe and after.step:
        observed = how.observe(after.extended.factors, after.step, observed)
    turned = jnp.maximum(state.largest_turn, after.largest_turn)
    turned = jnp.where(how.level <= thresholds.WORKING, 0, turned)
    return _State(z, after.extended, after.ratios, state.spent, turned, observed)


class _Run(NamedTuple):
    """Where a segment is: the next layer, the state before it, what is stored, and its trial."""

    layer: Array
    state: _State
    stored: Any
    found: Trial


def _on_trial(segment: Chain, how: _How, carry: Any) -> Any:
    """Through a segment, in working precision as far as that is enough."""
    state, stored = carry
    first = jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(partial(_trial_of, segment, how), first, state)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    end = jax.lax.while_loop(
        lambda run: run.layer < segment.depth,
        partial(_one_extended_and_trials, segment, how),
        _Run(first, state, stored, nothing),
    )
    return end.state, end.stored


def _one_extended_and_trials(segment: Chain, how: _How, run: _Run) -> _Run:
    """One layer in extended precision, and those behind it whose trials are good enough."""
    run = _with_extended(segment, how, run)
    first = run.layer
    end = jax.lax.while_loop(
        partial(_is_enough, segment.depth), partial(_with_trial, segment, how), run
    )
    anew = extended.after_trials(end.state.extended.factors, end.state.ratios)
    now = jax.tree.map(partial(jnp.where, end.layer > first), anew, end.state.extended)
    return end._replace(state=end.state._replace(extended=now))


def _trial_of(segment: Chain, how: _How, layer: Array, state: _State) -> Trial:
    # Beyond the last layer it is the last once more, and nobody takes it.
    params = chain.params_at(segment.params, layer)
    found = trial.of_layer(segment.layer, params, state.z, state.extended.factors)
    error = jnp.where(how.level <= thresholds.WORKING, found.error, jnp.inf)
    return found._replace(error=error)


def _is_enough(depth: int, run: _Run) -> Array:
    is_good = (run.found.error <= thresholds.LAYER_BUDGET) & (
        run.state.spent + run.found.error <= thresholds.ERROR_BUDGET
    )
    return (run.layer < depth) & is_good


def _with_trial(segment: Chain, how: _How, run: _Run) -> _Run:
    """One layer further, by the trial that was good enough."""
    layer, state, _, found = run
    before = state.extended.factors
    after = trial.accepted(before, found)
    observed = state.observed
    if how.observe:
        params = chain.params_at(segment.params, layer)
        step = trial.step(segment.layer, params, state.z, before, found)
        observed = how.observe(after, step, observed)
    since = ratios.after_layer(state.ratios, after.d, found.pivots)
    now, spent = state.extended._replace(factors=after), state.spent + found.error
    state = _State(found.z, now, since, spent, state.largest_turn, observed)
    return _advanced(segment, how, run, state)


def _with_extended(segment: Chain, how: _How, run: _Run) -> _Run:
    """One layer further, in extended precision."""
    params = chain.params_at(segment.params, run.layer)
    state = _one_extended(segment.layer, how, params, run.state)
    return _advanced(segment, how, run, state)


def _advanced(segment: Chain, how: _How, run: _Run, state: _State) -> _Run:
    """The run after one more layer, which has left this state."""
    stored = how.store(run.layer, state, run.stored) if how.store else run.stored
    layer = run.layer + 1
    return _Run(layer, state, stored, _trial_of(segment, how, layer, state))


def _level_needed(state: _State) -> Array:
    """The level that a chain that ends like this has to be gone through at, at least."""
    limits = thresholds.AMPLIFICATION_LIMITS
    by_rise = jnp.sum(jnp.max(state.ratios.rise) > limits, dtype=jnp.int32)
    # Where rounding has ended a direction, nobody knows on whom it would have caught up.
    harmless = 2.0 ** limits[0] * scaled.eps(state.z.dtype)
    is_unknown = (state.extended.factors.num_lost > 0) | ~(state.largest_turn <= harmless)
    return jnp.where(is_unknown, thresholds.DOUBLED, by_rise)
