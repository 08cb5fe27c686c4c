"""A watch on a clip at work: it changes nothing, costs a sum of squares, and keeps what it saw.

It takes the norm of every leaf before and after the clip, as plain sums of squares; where these
leave the range, or an entry is not finite, it looks again, and that alone costs more. Of this
house's clip it knows the norm behind it, which is tau where it fired, and takes no sum of its own:
what the clip leaves is below tau by at most its own error, 16 u. What is cut in 16 bits may end an
ulp of each entry below, 2^-7 of the norm in bfloat16, and is measured, whoever clips.
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
from jax.typing import ArrayLike

from gradlab.arithmetic import doubled, formats, norms, quick_norms
from gradlab.measuring import histogram, leaf_norms
from gradlab.measuring.global_norm import Tree, leaves_of
from gradlab.measuring.leaf_norms import value


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["names", "tau", "rate"])
@dataclass(frozen=True)
class Watched:
    """What is known of a clip beforehand: part of a state's structure, not of its arrays.

    Attributes:
        names: the path of every leaf that the clip sees.
        tau: its threshold, where it was told.
        rate: the learning rate behind it, where it was told.
    """

    names: tuple[str, ...]
    tau: float | None
    rate: float | None


class KnownClip(optax.GradientTransformation):  # type: ignore[misc]
    """A clip by the global norm of which a watch knows what it does, and need not measure it.

    Attributes:
        limit: the threshold, above which, and only there, the norm is brought down to it.
    """

    limit: ArrayLike


class MonitorState(NamedTuple):
    """The state of `monitor`; the last `history` steps are kept, the oldest overwritten.

    Few arrays, since a call pays for each that it hands over; the properties say what is in them.

    Attributes:
        inner: the state of the clip itself.
        watched: the names of the leaves, and what the monitor was told.
        steps: `(3,)` how many so far, in how many the clip fired, and how many were not finite.
        ring: `(history, 2 + leaf)` norms before and after the clip, and the share of each leaf.
        counts: `(3, bin)` all norms before, norms after, and factors, for their quantiles.
        sums: `(leaf + 1,)` of the shares over all finite steps, and of what was pushed.
        wild: `(2, leaf)` how many entries were not finite, and the first step with one.
    """

    inner: Any
    watched: Watched
    steps: Array
    ring: Array
    counts: Array
    sums: Array
    wild: Array

    @property
    def num_steps(self) -> Array:
        """All steps so far."""
        return self.steps[0]

    @property
    def num_fired(self) -> Array:
        """The steps in which the clip changed the norm of a leaf."""
        return self.steps[1]

    @property
    def num_infinite(self) -> Array:
        """The steps with an entry that was not finite."""
        return self.steps[2]

    @property
    def norm_before(self) -> Array:
        """`(history,)` global norm before the clip."""
        return self.ring[:, 0]

    @property
    def norm_after(self) -> Array:
        """`(history,)` and after it."""
        return self.ring[:, 1]

    @property
    def share(self) -> Array:
        """`(history, leaf)` the norm of a leaf over the global norm, before the clip."""
        return self.ring[:, 2:]

    @property
    def total_share(self) -> Array:
        """`(leaf,)` the sum of its shares over all finite steps."""
        return self.sums[:-1]

    @property
    def pushed(self) -> Array:
        """The sum over all steps of the part of the entries that the clip pushed under epsilon.

        It is nan where no epsilon was told.
        """
        return self.sums[-1]

    @property
    def infinite(self) -> Array:
        """`(leaf,)` how many of its entries were not finite, over all steps."""
        return self.wild[0]

    @property
    def first_infinite(self) -> Array:
        """`(leaf,)` the first step with one, -1 where there was none."""
        return self.wild[1]


def monitor(
    transformation: optax.GradientTransformation,
    history: int,
    *,
    tau: float | None = None,
    learning_rate: float | None = None,
    epsilon: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    """A clipping transformation that does as before and keeps a record in its state.

    Wrap the clip alone, not the optimiser behind it:
    `optax.chain(monitor(clip, 1000), optax.adam(1e-3))`.

    Args:
        transformation: the clip to watch, of this house, of optax, or any other.
        history: the number of steps whose norms and shares are kept.
        tau: its threshold, so that a norm that ends elsewhere is noticed.
        learning_rate: the optimiser's, so that the step can be told that it amounts to.
        epsilon: the optimiser's, so that entries are counted that the clip pushes under it; this
            reads the gradient once more.
    """
    if history < 1:
        raise ValueError(f"history is {history}; allowed: a whole number of at least 1")
    inner = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> MonitorState:
        leaves = leaves_of(params)
        dtype, num = norms.wide(leaves), len(leaves)
        names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        return MonitorState(
            inner=inner.init(params),
            watched=Watched(tuple(names), tau, learning_rate),
            steps=jnp.zeros(3, jnp.int32),
            ring=jnp.full((history, 2 + num), jnp.nan, dtype),
            counts=histogram.empty(3),
            sums=jnp.zeros(num + 1, dtype).at[-1].set(0 if epsilon is not None else jnp.nan),
            wild=jnp.tile(jnp.array([[0], [-1]], jnp.int32), num),
        )

    def update(
        updates: Tree, state: MonitorState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, MonitorState]:
        clipped, inner_state = inner.update(updates, state.inner, params, **extra)
        before, after = leaves_of(updates), leaves_of(clipped)
        limit = getattr(transformation, "limit", None)
        return clipped, _seen(state, before, after, limit, epsilon)._replace(inner=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _seen(
    state: MonitorState,
    before: list[Array],
    after: list[Array],
    limit: ArrayLike | None,
    epsilon: float | None,
) -> MonitorState:
    """The state with one step more."""
    dtype, step = state.ring.dtype, state.num_steps
    sizes, infinite = leaf_norms.sizes(before, dtype)
    is_finite = jnp.sum(infinite) == 0
    norm_before = leaf_norms.total(sizes)
    if limit is not None and all(leaf.dtype == dtype for leaf in before):
        effect = _known(before, norm_before, limit)
    else:
        effect = _measured(before, norm_before, after)
    share = jnp.where(norm_before > 0, sizes / norm_before, 0)
    share = jnp.where(is_finite, share, jnp.nan)
    norms_seen = jnp.stack([norm_before, effect.norm_after])
    factor = effect.norm_after / norm_before
    pushed = jnp.zeros((), dtype) if epsilon is None else _pushed(before, after, epsilon)
    added = jnp.append(jnp.where(is_finite, share, 0), pushed.astype(dtype))
    first = leaf_norms.first_step(state.first_infinite, infinite > 0, step)
    return state._replace(
        steps=_more(
            state.steps, jnp.stack([jnp.array(True), is_finite & effect.fired, ~is_finite])
        ),
        ring=lax.dynamic_update_index_in_dim(
            state.ring, jnp.append(norms_seen, share), step % len(state.ring), 0
        ),
        counts=histogram.counted(state.counts, jnp.append(norms_seen, factor)),
        sums=state.sums + added,
        wild=jnp.stack([_more(state.infinite, infinite), first]),
    )


def _more(counts: Array, added: Array) -> Array:
    """The sum of two counts, and the largest whole number for those that would be beyond it."""
    return counts + jnp.minimum(added, np.iinfo(np.int32).max - counts)


class Effect(NamedTuple):
    """What a clip did: the norm behind it, and whether it changed anything."""

    norm_after: Array
    fired: Array


def _known(before: list[Array], norm_before: Array, limit: ArrayLike | None) -> Effect:
    """What a clip does that is known to bring the norm to its limit, to the clip's own error."""
    tau = jnp.asarray(limit, norm_before.dtype)
    # The sum that the clip itself decides by, where it has one.
    square = quick_norms.total_square(before, norm_before.dtype)
    decisive = jnp.where(quick_norms.is_in_range(square), doubled.root(square), norm_before)
    fired = decisive > tau
    after = jnp.where(jnp.isfinite(norm_before), tau, jnp.nan)
    return Effect(jnp.where(fired, after, norm_before), fired)


def _measured(before: list[Array], norm_before: Array, after: list[Array]) -> Effect:
    """What any clip did, by its result."""
    dtype = norm_before.dtype
    size = quick_norms.measure(after, dtype)
    first, second = quick_norms.powers(size.exponent, dtype)
    norm_after = size.root * first * second
    # Sums that are both lost, to 0 or infinity, agree; and the norms were added up otherwise.
    squares = (leaf_norms.plain_squares(before, dtype), leaf_norms.plain_squares(after, dtype))
    shrunk = norm_after < norm_before * (1 - 16 * float(formats.finfo(dtype).eps))
    return Effect(norm_after, jnp.any(squares[0] != squares[1]) | shrunk)


def _pushed(before: list[Array], after: list[Array], epsilon: float) -> Array:
    """The part of all entries that were at least epsilon before the clip, and are not after it."""
    pairs = zip(before, after, strict=True)
    counts = [jnp.sum((jnp.abs(a) >= epsilon) & (jnp.abs(b) < epsilon)) for a, b in pairs]
    return sum(counts, start=jnp.zeros(())) / max(sum(leaf.size for leaf in before), 1)


class Record(NamedTuple):
    """What a monitor has seen in the steps that it kept, oldest first, as numpy arrays.

    Attributes:
        num_steps: all steps so far.
        num_fired: the steps in which the clip changed the gradient.
        norm_before: `(kept,)` global norm before the clip.
        norm_after: `(kept,)` and after it.
        share: for each leaf, `(kept,)` its norm over the global norm, before the clip.
    """

    num_steps: int
    num_fired: int
    norm_before: Any
    norm_after: Any
    share: dict[str, Any]


def record(state: MonitorState) -> Record:
    """The record in a monitor's state, in the order of the steps."""
    num_steps, share = int(value(state.num_steps)), value(state.share)
    kept = leaf_norms.kept(num_steps, len(share))
    before, after = value(state.norm_before)[kept], value(state.norm_after)[kept]
    columns = dict(zip(state.watched.names, share[kept].T, strict=True))
    return Record(num_steps, int(value(state.num_fired)), before, after, columns)


def scalars(state: MonitorState) -> dict[str, float]:
    """One row of a log: names to numbers, as TensorBoard and the like take them."""
    counts, steps = value(state.counts), max(int(value(state.num_steps)), 1)
    row = {
        "clip/steps": float(value(state.num_steps)),
        "clip/fired": float(value(state.num_fired)) / steps,
        "clip/not_finite": float(value(state.num_infinite)) / steps,
    }
    for kind, name in enumerate(("norm_before", "norm_after", "factor")):
        for part in (50, 90, 99):
            row[f"clip/{name}_p{part}"] = histogram.quantile(counts[kind], part / 100)
    seen = record(state)
    if seen.norm_before.size:
        row["clip/norm_before"] = float(seen.norm_before[-1])
        row["clip/norm_after"] = float(seen.norm_after[-1])
    if state.watched.rate is not None:
        row["clip/learning_rate"] = state.watched.rate * row["clip/factor_p50"]
    if not np.isnan(value(state.pushed)):
        row["clip/pushed_under_epsilon"] = float(value(state.pushed)) / steps
    return row
