"""A watch on an optimiser at work: what each layer's gradient and step were before it went wrong.

It changes nothing and costs three sums of squares: of the gradient, the update and the weights. The
last steps stand in a ring; those before the largest spike are put by when it comes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from gradlab.diagnosis import door, spikes
from gradlab.diagnosis.report import number
from gradlab.diagnosis.spikes import Event
from gradlab.errors import BadInput
from gradlab.measuring import histogram, leaf_norms
from gradlab.measuring.clip_report import NUM_ROWS, Report, states_of
from gradlab.measuring.global_norm import Tree, leaves_of
from gradlab.measuring.leaf_norms import value


class Ring(NamedTuple):
    """The last steps, each overwriting the oldest.

    Attributes:
        gradient: `(history, layer)` norms of the gradient.
        update: `(history, layer)` the norm of the update over that of the weights.
    """

    gradient: Array
    update: Array


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["layers"])
@dataclass(frozen=True)
class Names:
    """The layers that are watched, by the path of their weights: structure, and no array."""

    layers: tuple[str, ...]


class WatchState(NamedTuple):
    """The state of `watch`.

    Attributes:
        inner: the state of the optimiser itself.
        names: the layers.
        num_steps: all steps so far.
        ring: the last steps.
        counts: `(2, bin)` the norms of the whole gradient, and all updates over weights.
        infinite: `(layer,)` in how many steps its gradient was not finite.
        first_infinite: `(layer,)` the first one, -1 where there was none.
        spike: the steps up to the largest spike, as they stood in the ring.
        spike_step: that step, -1 where the ring has not yet been full.
        spike_size: the log of its norm over the largest of the calm steps; inf where it was not
            finite, and nothing later is larger.
    """

    inner: Any
    names: Names
    num_steps: Array
    ring: Ring
    counts: Array
    infinite: Array
    first_infinite: Array
    spike: Ring
    spike_step: Array
    spike_size: Array


def watch(
    optimizer: optax.GradientTransformation, history: int = 128
) -> optax.GradientTransformationExtraArgs:
    """An optimiser that does as before and keeps in its state what each layer did.

    Wrap the whole of it: `gl.watch(optax.chain(clip, optax.adamw(1e-3)))`. Then
    `print(gl.watching.report(opt_state))`, and `gl.watching.scalars(opt_state)` for a log.

    Args:
        optimizer: any optax transformation. Where its `update` is not given the weights, an update
            over weights is nan.
        history: the number of steps that are kept.

    Raises:
        BadInput: for a history of fewer than 4 steps, or what is no transformation.
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise BadInput(
            f"gl.watch wraps an optax transformation, not a {type(optimizer).__name__}; "
            "give gl.watch(optax.adam(1e-3))."
        )
    if history < 4:
        raise BadInput(f"history is {history}; allowed: a whole number of at least 4.")
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Tree) -> WatchState:
        leaves = leaves_of(params)
        dtype, num = leaf_norms.wide(leaves), len(leaves)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]

        def ring() -> Ring:  # each an array of its own: a donated one can be given once
            return Ring(*(jnp.full((history, num), jnp.nan, dtype) for _ in Ring._fields))

        return WatchState(
            inner=inner.init(params),
            names=Names(tuple(map(door.path_name, paths))),
            num_steps=jnp.zeros((), jnp.int32),
            ring=ring(),
            counts=histogram.empty(2),
            infinite=jnp.zeros(num, jnp.int32),
            first_infinite=jnp.full(num, -1, jnp.int32),
            spike=ring(),
            spike_step=jnp.full((), -1, jnp.int32),
            spike_size=jnp.full((), -jnp.inf, dtype),
        )

    def update(
        updates: Tree, state: WatchState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, WatchState]:
        made, inner_state = inner.update(updates, state.inner, params, **extra)
        weights = None if params is None else leaves_of(params)
        seen = _seen(state, leaves_of(updates), leaves_of(made), weights)
        return made, seen._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(
    state: WatchState, gradient: list[Array], update: list[Array], weights: list[Array] | None
) -> WatchState:
    """The state with one step more."""
    dtype, step = state.ring.gradient.dtype, state.num_steps
    history = len(state.ring.gradient)
    sizes, num_infinite = leaf_norms.sizes(gradient, dtype)
    is_infinite = num_infinite > 0
    moved, _ = leaf_norms.sizes(update, dtype)
    held = jnp.full_like(moved, jnp.nan) if weights is None else leaf_norms.sizes(weights, dtype)[0]
    slot = step % history
    ring = Ring(
        state.ring.gradient.at[slot].set(sizes), state.ring.update.at[slot].set(moved / held)
    )
    size = _spike_size(ring.gradient, step, jnp.any(is_infinite))
    is_largest = size > state.spike_size
    whole = jnp.stack([leaf_norms.total(sizes), leaf_norms.total(moved) / leaf_norms.total(held)])
    return state._replace(
        num_steps=step + 1,
        ring=ring,
        counts=histogram.counted(state.counts, whole),
        infinite=state.infinite + is_infinite,
        first_infinite=leaf_norms.first_step(state.first_infinite, is_infinite, step),
        spike=lax.cond(is_largest, lambda: ring, lambda: state.spike),
        spike_step=jnp.where(is_largest, step, state.spike_step),
        spike_size=jnp.where(is_largest, size, state.spike_size),
    )


def _spike_size(gradient: Array, step: Array, is_infinite: Array) -> Array:
    """The log of a step's norm over the largest of the calm ones; -inf until the ring is full."""
    history = len(gradient)
    totals = jax.vmap(leaf_norms.total)(gradient)
    age = (step - jnp.arange(history)) % history
    is_calm = (age >= history - spikes.calm_steps(history)) & jnp.isfinite(totals)
    most = jnp.max(jnp.where(is_calm, totals, 0))
    size = jnp.log(totals[step % history]) - jnp.log(most)
    # Out of a calm of zeros everything rises without bound, which is no spike.
    size = jnp.where((step >= history - 1) & (most > 0), size, -jnp.inf)
    return jnp.where(is_infinite, jnp.inf, size)


# ---- in words, and for a log


def report(opt_state: Any) -> Report:
    """What the watch in an optimiser's state saw: a verdict, the events before a spike, a table.

    Raises:
        BadInput: there is none in it.
    """
    state = _found(opt_state)
    rows = [(name, *map(number, cells)) for name, *cells in _rows(state)]
    return Report(
        verdict=_verdict(state),
        lines=tuple(_story(state)),
        head=("layer", "gradient", "update/weight", "not finite"),
        rows=tuple(rows[:NUM_ROWS]),
    )


def scalars(opt_state: Any) -> dict[str, float]:
    """One row of a log: names to numbers, as TensorBoard and the like take them.

    `watch/gradient` and `watch/update_over_weight` are those of the last step, of all weights and,
    behind a slash, of each layer; `_p50` and `_p99` are quantiles of all steps.
    """
    state = _found(opt_state)
    counts = value(state.counts)
    row = {
        "watch/steps": float(value(state.num_steps)),
        "watch/not_finite": float(value(state.infinite).max(initial=0)),
        "watch/spike": float(np.exp(value(state.spike_size))),
        "watch/spike_step": float(value(state.spike_step)),
    }
    for kind, name in enumerate(("gradient", "update_over_weight")):
        for part in (50, 99):
            row[f"watch/{name}_p{part}"] = histogram.quantile(counts[kind], part / 100)
    gradient, update = _kept(state.ring, state)
    if len(gradient):
        row["watch/gradient"] = float(np.linalg.norm(gradient[-1]))
        for k, layer in enumerate(state.names.layers):
            row[f"watch/gradient/{layer}"] = float(gradient[-1, k])
            row[f"watch/update_over_weight/{layer}"] = float(update[-1, k])
    return row


def events(opt_state: Any) -> list[Event]:
    """The layers that rose before the largest spike, in the order in which they did.

    Empty where the largest is below ten times what was calm, and no step was not finite.
    """
    state = _found(opt_state)
    if not _has_spike(state):
        return []
    step = int(value(state.spike_step))
    gradient = value(state.spike.gradient)[leaf_norms.kept(step + 1, len(state.ring.gradient))]
    return spikes.risen(gradient, step, state.names.layers)


def _found(opt_state: Any) -> WatchState:
    found = list(states_of(opt_state, WatchState).values())
    if not found:
        raise BadInput("The optimiser's state holds no watch; wrap the optimiser: gl.watch(optim).")
    return found[0]


def _has_spike(state: WatchState) -> bool:
    return bool(value(state.spike_size) >= np.log(spikes.SPIKE))


def _kept(ring: Ring, state: WatchState) -> tuple[Any, Any]:
    """Gradients and updates over weights of the steps that are kept, oldest first."""
    order = leaf_norms.kept(int(value(state.num_steps)), len(value(ring.gradient)))
    return value(ring.gradient)[order], value(ring.update)[order]


def _verdict(state: WatchState) -> str:
    num_steps, first = int(value(state.num_steps)), value(state.first_infinite)
    if not num_steps:
        return "the watch has seen no step yet"
    if (first >= 0).any():
        step = int(first[first >= 0].min())
        return (
            f"not finite on {int(value(state.infinite).max())} of {num_steps} steps, first at step "
            f"{step}: {_listed([state.names.layers[k] for k in np.flatnonzero(first == step)])}"
        )
    if _has_spike(state):
        size = float(np.exp(value(state.spike_size)))
        return (
            f"a spike at step {int(value(state.spike_step))}: the gradient's norm is {size:.3g} "
            f"times the largest of the {spikes.calm_steps(len(state.ring.gradient))} steps that "
            "were calm before it"
        )
    return f"no spike in {num_steps} steps"


def _story(state: WatchState) -> list[str]:
    """The events before the spike, in words; and layers that stand still."""
    lines = []
    risen = events(state)
    if risen and len(risen) == len(state.names.layers) and risen[0].step == risen[-1].step:
        lines.append(
            f"all {len(risen)} layers rose at once, at step {risen[0].step}: the batch or the loss"
        )
    else:
        lines += [
            f"step {event.step}: {event.layer} rose to {event.factor:.3g} times its calm, "
            f"{event.at_spike:.3g} times at the spike"
            for event in risen[:5]
        ]
        lines += [f"and {len(risen) - 5} more layers"] if len(risen) > 5 else []
    _, update = _kept(state.ring, state)
    still = [
        name
        for name, column in zip(state.names.layers, update.T, strict=True)
        if len(column) and (column == 0).all()
    ]
    return lines + ([f"no update in the steps kept: {_listed(still)}"] if still else [])


def _listed(names: list[str]) -> str:
    more = f" ({len(names)} in all)" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _rows(state: WatchState) -> list[tuple[Any, ...]]:
    """A row a layer, the largest gradient first: medians of the kept steps, steps not finite."""
    gradient, update = _kept(state.ring, state)
    if not len(gradient):
        return []
    middle = np.median(gradient, axis=0), np.median(update, axis=0)
    rows = zip(state.names.layers, *middle, value(state.infinite), strict=True)
    return sorted(rows, key=lambda row: (-row[3], -row[1]))
