"""Clipping by the global norm: the formula itself, beside optax's, and a watch on a clip at work.

    g <- g tau / max(|g|, tau)              Pascanu, Mikolov and Bengio 2013, algorithm 1

What holds here, in float16, bfloat16, float32 and float64, subnormal numbers included, with u
half an ulp of `wide`, the float format of the arithmetic (float64 where a leaf has it, else
float32):

- |g| <= tau: every bit of g is returned; so is g where |g| is above tau by less than the
  `slack` 2^14 u² (0.0005 ulp in float32, 5e-13 in float64), which no format could show;
- otherwise every entry is the formula's exact value rounded *toward zero*: less than one ulp low
  and never high (by more than the slack), since a cap that rounds up is no cap. So the norm is
  never above tau (by more than the slack), and clipping twice is clipping once, bit for bit;
- an infinite entry makes the norm infinite: finite entries become 0, the limit of the formula,
  and infinite ones nan, as they have no limit. A nan anywhere makes everything nan. tau = inf
  never clips; a traced tau of 0 gives 0, one below 0 or nan gives nan;
- the derivative is that of the formula, at a zero gradient that of the identity.

How: in twice the digits (`norms`). The sums' error is below the slack for 2^24 entries and, since
roundings cancel, far beyond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import bits, formats, norms

Tree = Any  # a pytree of real floating arrays


# ---- the formula


def clip(grads: Tree, tau: ArrayLike) -> Tree:
    """`grads` scaled to norm `tau` where their global norm is above it, unchanged elsewhere.

    Args:
        grads: any pytree of real floating leaves; each keeps its shape and dtype.
        tau: the largest norm let through, in the unit of the gradient.

    Raises:
        ValueError: tau is not one number above 0, where its value is known.
        TypeError: a leaf is not real and floating.
    """
    _check_tau(tau)
    return formula(grads, tau)


def formula(grads: Tree, tau: ArrayLike) -> Tree:
    """`clip` without the refusal: every tau has the value that the formula gives it."""
    leaves = _leaves(grads)
    clipped = _clip(leaves, jnp.asarray(tau, norms.wide(leaves)))
    return jax.tree.unflatten(jax.tree.structure(grads), clipped)


def norm(grads: Tree) -> Array:
    """The Euclidean norm over all entries of a pytree, less than one ulp low, `()` in `wide`.

    `inf` only where the true norm is above the largest float; its derivative at 0 is 0.
    """
    return _norm(_leaves(grads))


def cosine(one: Tree, other: Tree) -> Array:
    """The cosine of the angle between two pytrees, `()`, to about 10 ulps; nan where one is 0."""
    # A tree of zeros has the unit vector 0 / 0, and so the cosine nan.
    parts = (_leaves(tree) for tree in (one, other))
    return _along(*(norms.unit(leaves, norms.measure(leaves)) for leaves in parts))


def clip_by_global_norm(tau: ArrayLike) -> optax.GradientTransformation:
    """`clip` as an optax transformation without state: a drop-in for the one of optax.

    Raises:
        ValueError: tau is not one number above 0, where its value is known.
    """
    _check_tau(tau)

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        del params
        return clip(updates, tau), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _check_tau(tau: ArrayLike) -> None:
    if jnp.ndim(tau) != 0:
        raise ValueError(f"tau has shape {jnp.shape(tau)}; allowed: one number above 0")
    if not isinstance(tau, jax.core.Tracer) and not np.asarray(tau) > 0:
        raise ValueError(f"tau is {tau}; allowed: a number above 0")


def _leaves(grads: Tree) -> list[Array]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        dtype = jnp.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"gradient leaf '{jax.tree_util.keystr(path)}' has dtype {dtype}; "
                "allowed: real floating point"
            )
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(grads)]


@jax.custom_jvp
def _clip(leaves: list[Array], tau: Array) -> list[Array]:
    size = norms.measure(leaves)
    keep = norms.is_within(size, tau)
    factor = norms.quotient(tau, size)
    return [jnp.where(keep, leaf, norms.times(leaf, factor)) for leaf in leaves]


@_clip.defjvp
def _clip_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    (leaves, tau), (dleaves, dtau) = primals, tangents
    size = norms.measure(leaves)
    keep = norms.is_within(size, tau)
    factor = norms.quotient(tau, size)
    # Where nothing is clipped the direction has no part, and may not exist: 0 * nan is nan.
    unit = [jnp.where(keep, 0, direction) for direction in norms.unit(leaves, size)]
    high = jnp.where(keep, 1, factor.mantissa.high)
    factor = factor._replace(
        mantissa=factor.mantissa._replace(high=high), exponent=factor.exponent * ~keep
    )
    along = _along(unit, dleaves)
    slopes = [
        (norms.times_high(dleaf.astype(tau.dtype) - part * along, factor) + part * dtau)
        for dleaf, part in zip(dleaves, unit, strict=True)
    ]
    return _clip(leaves, tau), [
        slope.astype(leaf.dtype) for slope, leaf in zip(slopes, leaves, strict=True)
    ]


@jax.custom_jvp
def _norm(leaves: list[Array]) -> Array:
    return norms.rounded(norms.measure(leaves))


@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (leaves,), (dleaves,) = primals, tangents
    size = norms.measure(leaves)
    is_positive = size.mantissa.high > 0
    unit = [jnp.where(is_positive, part, 0) for part in norms.unit(leaves, size)]
    return norms.rounded(size), _along(unit, dleaves)


def _along(unit: list[Array], tangents: list[Array]) -> Array:
    pairs = zip(unit, tangents, strict=True)
    products = (jnp.sum(part * tangent.astype(part.dtype)) for part, tangent in pairs)
    return sum(products, start=jnp.zeros((), norms.wide(unit)))


# ---- beside optax

# Why optax and the formula may disagree. The first cause in this order that applies is named.
CAUSES = {
    "none": "both give the same bits",
    "infinite leaf": "an entry is infinite, and so is the norm",
    "zero at tau = 0": "optax divides 0 by 0, since its test is norm < tau",
    "norm overflow": "the norm of a finite gradient is infinite in the format it is computed in",
    "threshold out of range": "tau is infinite or 0 in the format of the leaf",
    "norm underflow": "squares below the smallest normal number are lost from the norm",
    "low-precision accumulation": "squares of 16-bit leaves are summed in 16 bits",
    "one-ulp corner at equality": "the norm is tau to rounding, and the two decide differently",
    "entry underflow": "an entry, or its share of the norm, is below the smallest normal number",
    "rounding": "norm, quotient and product are each rounded to nearest, the formula once to zero",
}


class Comparison(NamedTuple):
    """What `optax.clip_by_global_norm` and the formula make of one gradient.

    Attributes:
        optax: optax's result.
        formula: the formula's result.
        ulps: tree as the gradient, for each entry how many floats the two results are apart;
            `inf` where only one of them is nan.
        max_ulps: the largest of these.
        num_disagree: the number of entries whose results differ.
        first: index of the first such entry, leaf after leaf; -1 where there is none.
        cause: index into `CAUSES` of the cause of the disagreement.
        norm: of the gradient.
        norm_optax: of optax's result.
        norm_formula: of the formula's result.
        cosine_optax: of the angle between optax's result and the gradient; nan where one of
            them is 0 or not finite.
        cosine_formula: of the angle between the formula's result and the gradient.
    """

    optax: Tree
    formula: Tree
    ulps: Tree
    max_ulps: Array
    num_disagree: Array
    first: Array
    cause: Array
    norm: Array
    norm_optax: Array
    norm_formula: Array
    cosine_optax: Array
    cosine_formula: Array


def compare(grads: Tree, tau: ArrayLike) -> Comparison:
    """`optax.clip_by_global_norm(tau)` held against `formula(grads, tau)`, entry by entry.

    Raises:
        TypeError: tau is traced and the leaves have several dtypes, which optax cannot take.
    """
    by_formula, by_optax = formula(grads, tau), optax_clip(grads, tau)
    distance = jax.tree.map(ulps, by_optax, by_formula)
    flat = jnp.concatenate([jnp.zeros(0), *map(jnp.ravel, jax.tree.leaves(distance))])
    differs = flat > 0
    first = jnp.where(jnp.any(differs), jnp.argmax(differs), -1)
    trees = [_leaves(tree) for tree in (grads, by_optax, by_formula)]
    sizes = [norms.measure(leaves) for leaves in trees]
    units = [norms.unit(leaves, size) for leaves, size in zip(trees, sizes, strict=True)]
    before, after_optax, after_formula = map(norms.rounded, sizes)
    return Comparison(
        optax=by_optax,
        formula=by_formula,
        ulps=distance,
        max_ulps=jnp.max(flat, initial=0),
        num_disagree=jnp.sum(differs),
        first=first,
        cause=_cause(trees[0], tau, before, first),
        norm=before,
        norm_optax=after_optax,
        norm_formula=after_formula,
        cosine_optax=_along(units[0], units[1]),
        cosine_formula=_along(units[0], units[2]),
    )


def explain(grads: Tree, tau: ArrayLike) -> str:
    """One sentence: how far optax's result is from the formula's, where first, and why."""
    result = jax.jit(lambda grads: compare(grads, tau))(grads)
    cause = list(CAUSES)[int(result.cause)]
    if int(result.first) < 0:
        return f"optax and the formula agree: {CAUSES[cause]}"
    return (
        f"{int(result.num_disagree)} entries differ, by at most {float(result.max_ulps):g} ulps, "
        f"first {_place(grads, int(result.first))}: {cause} ({CAUSES[cause]})"
    )


def _place(grads: Tree, index: int) -> str:
    """The leaf, and the entry in it, that an index into all entries means."""
    named = [
        (jax.tree_util.keystr(path), jnp.size(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
    ]
    ends = np.cumsum([size for _, size in named])
    leaf = int(np.searchsorted(ends, index, side="right"))
    name, size = named[leaf]
    return f"entry {index - int(ends[leaf]) + size} of {name or 'the gradient'}"


def optax_clip(grads: Tree, tau: ArrayLike) -> Tree:
    """What `optax.clip_by_global_norm(tau)` gives, tau traced or not."""
    dtypes = {leaf.dtype for leaf in _leaves(grads)}
    # optax keeps the dtype of a leaf for a Python number only; a traced one is cast beforehand.
    if not isinstance(tau, jax.core.Tracer):
        tau = float(np.asarray(tau))
    elif len(dtypes) > 1:
        raise TypeError(f"tau is traced and the leaves have dtypes {dtypes}; allowed: one dtype")
    else:
        tau = tau.astype(next(iter(dtypes)))
    clipped, _ = optax.clip_by_global_norm(tau).update(grads, optax.EmptyState())
    return clipped


def ulps(one: Array, other: Array) -> Array:
    """How many floats apart two arrays of one dtype are, elementwise; 0 for two nan.

    Counted in floats of that dtype, so it is exact to 2^24; `inf` where one of the two is nan.
    """
    wide = norms.wide([one])
    a, b = bits.magnitude(one), bits.magnitude(other)
    same_side = bits.is_negative(one) == bits.is_negative(other)
    apart = jnp.where(same_side, jnp.abs(a - b).astype(wide), a.astype(wide) + b.astype(wide))
    num_nan = jnp.isnan(one).astype(jnp.int32) + jnp.isnan(other)
    return jnp.where(num_nan == 0, apart, jnp.where(num_nan == 1, jnp.inf, 0))


def _cause(leaves: list[Array], tau: ArrayLike, size: Array, first: Array) -> Array:
    """Index into `CAUSES` of the first cause that applies."""
    wide = norms.wide(leaves)
    tau = jnp.asarray(tau, wide)
    seen = optax.tree.norm(leaves)
    narrow = [leaf.dtype for leaf in leaves]
    tiny = max(formats.finfo(dtype).tiny.astype(wide) for dtype in narrow)
    flat = jnp.abs(jnp.concatenate([leaf.ravel().astype(wide) for leaf in leaves]))
    # Two ulps: more than a sum, a root and a conversion of these sizes are rounded by.
    off = ~(jnp.abs(seen.astype(wide) - size) <= 2 * formats.finfo(wide).eps * size)
    is_narrow = formats.finfo(seen.dtype).bits < 32
    # 16-bit subnormal numbers are rounded, all others are flushed, so that digits go earlier.
    squares_lost = jnp.max(flat) ** 2 < tiny / (1 if is_narrow else formats.finfo(wide).eps)
    entry = flat[jnp.maximum(first, 0)]
    applies = {
        "none": first < 0,
        "infinite leaf": jnp.any(jnp.isinf(flat)),
        "zero at tau = 0": tau == 0,
        "norm overflow": _any(jnp.isinf(seen.astype(dtype)) for dtype in narrow),
        "norm underflow": off & squares_lost | _any(seen.astype(dtype) == 0 for dtype in narrow),
        "threshold out of range": _any(_degenerate(tau.astype(dtype)) for dtype in narrow),
        "low-precision accumulation": off & is_narrow,
        "one-ulp corner at equality": (size <= tau) != (seen < tau),
        "entry underflow": jnp.minimum(entry / size, entry * (tau / size)) < tiny,
        "rounding": True,
    }
    return jnp.argmax(jnp.stack([jnp.asarray(applies[name]) for name in CAUSES]))


def _any(flags: Iterable[Array]) -> Array:
    return jnp.any(jnp.stack(list(flags)))


def _degenerate(tau: Array) -> Array:
    return jnp.isinf(tau) | (tau == 0)


# ---- watching a clip at work


class MonitorState(NamedTuple):
    """The state of `monitor`; the last `history` steps are kept, the oldest overwritten."""

    inner: Any
    num_steps: Array
    num_fired: Array
    norm_before: Array
    norm_after: Array
    share: Tree


def monitor(
    transformation: optax.GradientTransformation, history: int
) -> optax.GradientTransformationExtraArgs:
    """A clipping transformation that does as before and keeps a record in its state.

    It fires at a step when the transformation changes at least one entry, so wrap the clip
    alone, not the optimiser behind it: `optax.chain(monitor(clip, 1000), optax.adam(1e-3))`.

    Args:
        transformation: the clip to watch, of this room, of optax, or any other.
        history: the number of steps whose norms and shares are kept.
    """
    if history < 1:
        raise ValueError(f"history is {history}; allowed: a whole number of at least 1")
    inner = optax.with_extra_args_support(transformation)

    def init(params: Tree) -> MonitorState:
        empty = jnp.full(history, jnp.nan, norms.wide(_leaves(params)))
        zero = jnp.zeros((), jnp.int32)
        shares = jax.tree.map(lambda _: empty, params)
        return MonitorState(inner.init(params), zero, zero, empty, empty, shares)

    def update(
        updates: Tree, state: MonitorState, params: Tree = None, **extra: Any
    ) -> tuple[Tree, MonitorState]:
        clipped, inner_state = inner.update(updates, state.inner, params, **extra)
        slot = state.num_steps % history
        before = norm(updates)
        return clipped, MonitorState(
            inner_state,
            state.num_steps + 1,
            state.num_fired + _differs(updates, clipped),
            state.norm_before.at[slot].set(before),
            state.norm_after.at[slot].set(norm(clipped)),
            jax.tree.map(
                lambda kept, share: kept.at[slot].set(share), state.share, shares(updates)
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def shares(grads: Tree) -> Tree:
    """The norm of each leaf over the global norm, `()` a leaf; their squares add up to 1.

    The share of a leaf is what clipping leaves as it is: a layer that got nothing gets nothing.
    """
    size = norms.measure(_leaves(grads))

    def share(leaf: Array) -> Array:
        return norms.ratio(norms.measure(_leaves(leaf)), size)

    return jax.tree.map(share, grads)


class Record(NamedTuple):
    """What a monitor has seen, oldest kept step first, as numpy arrays.

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

    def __str__(self) -> str:
        if not self.num_steps:
            return "the clip has seen no step yet"
        lines = [
            f"the clip fired in {self.num_fired} of {self.num_steps} steps; in the last "
            f"{len(self.norm_before)} the norm was at most {np.max(self.norm_before):.3g} before "
            f"it and {np.max(self.norm_after):.3g} after it",
            "median share of the norm, leaf by leaf:",
        ]
        lines += [f"  {np.median(share):9.3g}  {name}" for name, share in self.share.items()]
        return "\n".join(lines)


def record(state: MonitorState) -> Record:
    """The record in a monitor's state, in the order of the steps."""
    num_steps, history = int(state.num_steps), state.norm_before.size
    kept = np.arange(max(0, num_steps - history), num_steps) % history
    share = {
        jax.tree_util.keystr(path): np.asarray(values)[kept]
        for path, values in jax.tree_util.tree_leaves_with_path(state.share)
    }
    before, after = np.asarray(state.norm_before)[kept], np.asarray(state.norm_after)[kept]
    return Record(num_steps, int(state.num_fired), before, after, share)


def _differs(one: Tree, other: Tree) -> Array:
    pairs = zip(_leaves(one), _leaves(other), strict=True)
    return _any([jnp.zeros((), bool), *(jnp.any(ulps(a, b) > 0) for a, b in pairs)])
