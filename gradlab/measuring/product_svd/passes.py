"""A whole chain taken into `L diag(d) U`, with no more digits than it turns out to need.

Layers are taken in quickly until one would lose something, which is taken in exactly. The chain is
gone through once more if, at its end, a direction is seen to have caught up on another, which
magnifies the rounding of all layers in between, or something beside all directions on one of them.
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
from gradlab.measuring.product_svd import graded
from gradlab.measuring.product_svd.graded import Ahead, Exactly, Factors, Gaps, Step
from gradlab.models import chain
from gradlab.models.chain import Chain, Layer, Model

# From the factors after a layer, what the layer was, and what was seen before, to what is seen.
See = Callable[[Factors, Step, Any], Any]

# From a layer's number, the state after it and what is stored, to what is stored.
Store = Callable[[Array, "_State", Any], Any]

# Up to how many powers of two by which a direction has caught up on another no layer of a chain
# needs to be refined, and none to be taken in carefully. Random networks of 100 to 10^4 layers were
# seen to reach 10 to 14, chains of random triangles 12 to 37.
_CAUGHT_UP = np.array([12, 16], np.int32)


class _State(NamedTuple):
    """After some layers: the state of the chain, its product, and what was seen on the way.

    `lost` is what quick layers may have lost so far (nats), and `strayed` the most that rounding
    had put beside all directions, or that has come back of that, where no layer was quick.
    """

    z: Array
    exactly: Exactly
    gaps: Gaps
    lost: Array
    strayed: Array
    seen: Any


class _How(NamedTuple):
    """How a segment is gone through, with the least width before it."""

    see: See | None
    store: Store | None
    grade: Array
    narrowest: int


def num_columns(model: Model, x: Array) -> int:
    """The most columns that the factors of a chain have."""
    widths = np.array(chain.widths(model, x))
    return max(map(graded.num_columns, np.minimum.accumulate(widths).tolist(), widths.tolist()))


def through(
    model: Model, x: Array, depths: Sequence[int], see: See | None, seen: Any
) -> tuple[Factors, Any]:
    """`(factors, seen)` as they stand at every depth asked for, `(num_depths, ...)`.

    The factors are padded with zeros to the largest width and `num_columns`.

    Args:
        model: the chain.
        x: its input, `(width_0,)`.
        depths: ascending depths from 1 to the model's.
        see: `seen = see(factors, step, seen)` is called at every layer, or None.
        seen: what it starts from, a pytree of arrays.
    """
    parts, num_layers = chain.checked(model, x), chain.depth(model)
    wanted = list(depths)
    if not wanted or wanted != sorted(set(wanted) & set(range(1, num_layers + 1))):
        raise ValueError(
            f"depths must be ascending whole numbers from 1 to {num_layers}, not {wanted}."
        )
    shape = num_columns(model, x), max(chain.widths(model, x))
    # A few roundings a layer in each of the directions.
    is_shallow = num_layers * shape[1] * scaled.eps(x.dtype) <= graded.LOSS
    lowest = graded.QUICK if is_shallow else graded.REFINED

    none = jnp.zeros((), x.dtype)
    start = _State(x, graded.start(x), graded.no_gaps(x), none, none, seen)
    places = np.full(num_layers, len(wanted))
    places[np.array(wanted) - 1] = np.arange(len(wanted))
    # One place more, for what nobody asked for.
    nothing = jax.tree.map(
        lambda leaf: jnp.zeros((len(wanted) + 1, *leaf.shape), leaf.dtype),
        (_padded(start.exactly.factors, shape), seen),
    )

    def attempt(grade: Array) -> tuple[Any, Array]:
        state, stored, num_before, narrowest = start, nothing, 0, x.size
        for segment in parts:
            own = places[num_before : num_before + segment.depth]
            # Where nothing is asked for on the way, nothing is stored there.
            is_last_only = (own[:-1] == len(wanted)).all()
            store = None if is_last_only else partial(_put, shape, jnp.asarray(own))
            go = _quickly if is_shallow and segment.depth > 1 else _exactly
            how = _How(see, store, grade, narrowest)
            state, stored = go(segment, how, (state, stored))
            narrowest = min(narrowest, state.z.size)
            if is_last_only and own[-1] < len(wanted):
                stored = _put(shape, own, segment.depth - 1, state, stored)
            num_before += segment.depth
        return stored, _grade(state)

    # How many digits it takes is known at the end: if there were too few, then once more.
    _, (stored, _) = jax.lax.while_loop(
        lambda state: state[0] < state[1][1],
        lambda state: (state[1][1], attempt(state[1][1])),
        (jnp.asarray(-1, jnp.int32), (nothing, jnp.asarray(lowest, jnp.int32))),
    )
    at_each: tuple[Factors, Any] = jax.tree.map(lambda leaf: leaf[:-1], stored)
    return at_each


def _put(shape: tuple[int, int], places: Any, layer: Any, state: _State, stored: Any) -> Any:
    """What is stored, with the state after a layer in its place."""
    now = _padded(state.exactly.factors, shape), state.seen
    return jax.tree.map(lambda every, one: every.at[places[layer]].set(one), stored, now)


def _exactly(segment: Chain, how: _How, carry: Any) -> Any:
    """Through a segment, every layer of it exactly."""

    def turn(carry: Any, at_layer: Any) -> tuple[Any, None]:
        layer, params = at_layer
        state, stored = carry
        state = _one_exactly(segment.layer, how, params, state)
        return (state, how.store(layer, state, stored) if how.store else stored), None

    layers = Chain(segment.layer, (jnp.arange(segment.depth), segment.params))
    return loops.scan(turn, carry, layers)[0]


def _one_exactly(layer: Layer, how: _How, params: Any, state: _State) -> _State:
    z, taken = graded.advance_exactly(
        layer,
        params,
        state.z,
        state.exactly,
        state.gaps,
        how.grade,
        how.narrowest,
        how.see is not None,
    )
    seen = state.seen
    if how.see and taken.step:
        seen = how.see(taken.exactly.factors, taken.step, seen)
    strayed = jnp.where(how.grade <= graded.QUICK, 0, jnp.maximum(state.strayed, taken.strayed))
    return _State(z, taken.exactly, taken.gaps, state.lost, strayed, seen)


def _quickly(segment: Chain, how: _How, carry: Any) -> Any:
    """Through a segment, quickly as far as that is enough."""
    depth, grade = segment.depth, how.grade

    def ahead_of(layer: Array, state: _State) -> Ahead:
        # Beyond the last layer it is the last once more, and nobody takes it.
        params = chain.at(segment.params, layer)
        ahead = graded.look_ahead(segment.layer, params, state.z, state.exactly.factors)
        return ahead._replace(loss=jnp.where(grade <= graded.QUICK, ahead.loss, jnp.inf))

    def is_enough(run: Any) -> Array:
        layer, state, _, ahead = run
        is_good = (ahead.loss <= graded.LAYER_LOSS) & (state.lost + ahead.loss <= graded.LOSS)
        return (layer < depth) & is_good

    def quick(run: Any) -> Any:
        layer, state, stored, ahead = run
        before = state.exactly.factors
        factors = graded.take(before, ahead)
        seen = state.seen
        if how.see:
            params = chain.at(segment.params, layer)
            step = graded.step_ahead(segment.layer, params, state.z, before, ahead)
            seen = how.see(factors, step, seen)
        gaps = graded.next_gaps(state.gaps, factors.d, ahead.pivots)
        exactly, lost = state.exactly._replace(factors=factors), state.lost + ahead.loss
        state = _State(ahead.z, exactly, gaps, lost, state.strayed, seen)
        stored = how.store(layer, state, stored) if how.store else stored
        return layer + 1, state, stored, ahead_of(layer + 1, state)

    def exact(run: Any) -> Any:
        layer, state, stored, _ = run
        state = _one_exactly(segment.layer, how, chain.at(segment.params, layer), state)
        stored = how.store(layer, state, stored) if how.store else stored
        return layer + 1, state, stored, ahead_of(layer + 1, state)

    def turn(run: Any) -> Any:
        first, *_ = run = exact(run)
        layer, state, stored, ahead = jax.lax.while_loop(is_enough, quick, run)
        anew = graded.after_quick_layers(state.exactly.factors, state.gaps)
        exactly = jax.tree.map(partial(jnp.where, layer > first), anew, state.exactly)
        return layer, state._replace(exactly=exactly), stored, ahead

    state, stored = carry
    first = jnp.zeros((), jnp.int32)
    shapes = jax.eval_shape(ahead_of, first, state)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    run = first, state, stored, nothing
    _, state, stored, _ = jax.lax.while_loop(lambda run: run[0] < depth, turn, run)
    return state, stored


def _grade(state: _State) -> Array:
    """What a chain that ends like this has to be gone through with, at least."""
    by_gaps = jnp.sum(jnp.max(state.gaps.caught_up) > _CAUGHT_UP, dtype=jnp.int32)
    # Where rounding has ended a direction, nobody knows on whom it would have caught up.
    enough = 2.0 ** _CAUGHT_UP[0] * scaled.eps(state.z.dtype)
    is_careful = (state.exactly.factors.num_lost > 0) | ~(state.strayed <= enough)
    return jnp.where(is_careful, graded.CAREFUL, by_gaps)


def _padded(factors: Factors, shape: tuple[int, int]) -> Factors:
    """Factors with `shape[0]` columns, those of L padded to `shape[1]`."""

    def pad(leaf: Array, *shape: int) -> Array:
        return jnp.zeros(shape, leaf.dtype).at[tuple(map(slice, leaf.shape))].set(leaf)

    d = jax.tree.map(lambda part: pad(part, shape[0]), factors.d)
    U = pad(factors.U, shape[0], factors.U.shape[1])
    return Factors(pad(factors.L, *shape[::-1]), d, U, factors.num_lost)
