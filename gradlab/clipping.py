"""Clipping by the global norm: the formula itself, beside optax's; imports optax and jax only.

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

How: an entry is split into its mantissa and its integer exponent, so nothing can leave the range;
the sum of squares and the quotient are carried as a head and a tail (Dekker 1971), two floats that
act as one of twice the precision. The sums' error is below the slack for 2^24 entries and, since
roundings cancel, far beyond.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax
from jax.typing import ArrayLike

# jax 0.10 leaves these two without types.
_finfo: Any = jnp.finfo
_barrier: Any = lax.optimization_barrier

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
    clipped = _clip(leaves, jnp.asarray(tau, _wide(leaves)))
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
    return _along(*(_unit(leaves, _measure(leaves)) for leaves in parts))


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


def _wide(leaves: list[Array]) -> Any:
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32


@jax.custom_jvp
def _clip(leaves: list[Array], tau: Array) -> list[Array]:
    size = _measure(leaves)
    keep = _within(size, tau)
    factor = _quotient(tau, size)
    return [jnp.where(keep, leaf, _times(leaf, factor)) for leaf in leaves]


@_clip.defjvp
def _clip_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    (leaves, tau), (dleaves, dtau) = primals, tangents
    size = _measure(leaves)
    keep = _within(size, tau)
    factor = _quotient(tau, size)
    # Where nothing is clipped the direction has no part, and may not exist: 0 * nan is nan.
    unit = [jnp.where(keep, 0, direction) for direction in _unit(leaves, size)]
    factor = _Scaled(jnp.where(keep, 1, factor.head), factor.tail, factor.exponent * ~keep)
    along = _along(unit, dleaves)
    slopes = [
        (_power_times(dleaf.astype(tau.dtype) - part * along, factor) + part * dtau)
        for dleaf, part in zip(dleaves, unit, strict=True)
    ]
    return _clip(leaves, tau), [
        slope.astype(leaf.dtype) for slope, leaf in zip(slopes, leaves, strict=True)
    ]


@jax.custom_jvp
def _norm(leaves: list[Array]) -> Array:
    return _rounded(_measure(leaves))


@_norm.defjvp
def _norm_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (leaves,), (dleaves,) = primals, tangents
    size = _measure(leaves)
    unit = [jnp.where(size.head > 0, part, 0) for part in _unit(leaves, size)]
    return _rounded(size), _along(unit, dleaves)


def _along(unit: list[Array], tangents: list[Array]) -> Array:
    pairs = zip(unit, tangents, strict=True)
    products = (jnp.sum(part * tangent.astype(part.dtype)) for part, tangent in pairs)
    return sum(products, start=jnp.zeros((), _wide(unit)))


def _unit(leaves: list[Array], size: _Scaled) -> list[Array]:
    """The leaves over their global norm, in `wide`."""
    parts = (_split(leaf, size.head.dtype) for leaf in leaves)
    return [_scaled_down(*part, size.exponent) / size.head for part in parts]


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
    sizes = [_measure(leaves) for leaves in trees]
    units = [_unit(leaves, size) for leaves, size in zip(trees, sizes, strict=True)]
    before, after_optax, after_formula = map(_rounded, sizes)
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
    wide = _wide([one])
    a, b = _magnitude(one), _magnitude(other)
    same_side = _is_negative(one) == _is_negative(other)
    apart = jnp.where(same_side, jnp.maximum(a, b) - jnp.minimum(a, b), a + b).astype(wide)
    num_nan = jnp.isnan(one).astype(jnp.int32) + jnp.isnan(other)
    return jnp.where(num_nan == 0, apart, jnp.where(num_nan == 1, jnp.inf, 0))


def _cause(leaves: list[Array], tau: ArrayLike, size: Array, first: Array) -> Array:
    """Index into `CAUSES` of the first cause that applies."""
    wide = _wide(leaves)
    tau = jnp.asarray(tau, wide)
    seen = optax.tree.norm(leaves)
    narrow = [leaf.dtype for leaf in leaves]
    tiny = max(_finfo(dtype).tiny.astype(wide) for dtype in narrow)
    flat = jnp.abs(jnp.concatenate([leaf.ravel().astype(wide) for leaf in leaves]))
    # Two ulps: more than a sum, a root and a conversion of these sizes are rounded by.
    off = ~(jnp.abs(seen.astype(wide) - size) <= 2 * _finfo(wide).eps * size)
    is_narrow = _finfo(seen.dtype).bits < 32
    # 16-bit subnormal numbers are rounded, all others are flushed, so that digits go earlier.
    squares_lost = jnp.max(flat) ** 2 < tiny / (1 if is_narrow else _finfo(wide).eps)
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
        record = jnp.full(history, jnp.nan, _wide(_leaves(params)))
        zero = jnp.zeros((), jnp.int32)
        shares = jax.tree.map(lambda _: record, params)
        return MonitorState(inner.init(params), zero, zero, record, record, shares)

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
                lambda record, share: record.at[slot].set(share), state.share, shares(updates)
            ),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def shares(grads: Tree) -> Tree:
    """The norm of each leaf over the global norm, `()` a leaf; their squares add up to 1.

    The share of a leaf is what clipping leaves as it is: a layer that got nothing gets nothing.
    """
    size = _measure(_leaves(grads))

    def share(leaf: Array) -> Array:
        part = _measure(_leaves(leaf))
        return part.head / size.head * _power(part.exponent - size.exponent, size.head.dtype)

    return jax.tree.map(share, grads)


class Report(NamedTuple):
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


def report(state: MonitorState) -> Report:
    """The record in a monitor's state, in the order of the steps."""
    num_steps, history = int(state.num_steps), state.norm_before.size
    kept = np.arange(max(0, num_steps - history), num_steps) % history
    share = {
        jax.tree_util.keystr(path): np.asarray(record)[kept]
        for path, record in jax.tree_util.tree_leaves_with_path(state.share)
    }
    before, after = np.asarray(state.norm_before)[kept], np.asarray(state.norm_after)[kept]
    return Report(num_steps, int(state.num_fired), before, after, share)


def _differs(one: Tree, other: Tree) -> Array:
    pairs = zip(_leaves(one), _leaves(other), strict=True)
    return _any([jnp.zeros((), bool), *(jnp.any(ulps(a, b) > 0) for a, b in pairs)])


# ---- the arithmetic: (head + tail) 2^exponent


class _Scaled(NamedTuple):
    head: Array
    tail: Array
    exponent: Array


def _measure(leaves: list[Array]) -> _Scaled:
    """The norm over all leaves, with the exponent of the largest entry."""
    wide = _wide(leaves)
    parts = [_split(leaf.ravel(), wide) for leaf in leaves]
    mantissa = jnp.concatenate([jnp.zeros(1, wide), *(part[0] for part in parts)])
    exponent = jnp.concatenate([jnp.zeros(1, jnp.int32), *(part[1] for part in parts)])
    largest = jnp.max(jnp.where(mantissa == 0, -(2**31), exponent))
    largest = jnp.where(jnp.any(mantissa != 0), largest, 0)
    entries = _scaled_down(mantissa, exponent, largest)
    finite = jnp.isfinite(entries)
    head, tail = _root(*_sum(*_product(*(jnp.where(finite, entries, 0),) * 2)))
    # 0 where all is finite, else inf, or nan where one entry is.
    wild = jnp.sum(jnp.where(finite, 0, jnp.abs(entries)))
    return _Scaled(jnp.where(wild == 0, head, wild), jnp.where(wild == 0, tail, 0), largest)


def _rounded(size: _Scaled) -> Array:
    """A norm as one float, toward zero: where the tail is negative, that costs an ulp."""
    head = jnp.where(size.tail < 0, _one_ulp_lower(size.head), size.head)
    return _join(head, size.exponent, size.head.dtype)


def _slack(dtype: Any) -> float:
    return float(2.0 ** (14 - 2 * (_finfo(dtype).nmant + 1)))


def _within(size: _Scaled, tau: Array) -> Array:
    """Whether the norm is at most tau, up to the slack; false for nan."""
    mantissa, exponent = _split(tau, tau.dtype)
    # 2^100 is beyond any ratio of a norm to its largest entry, and its inverse below any.
    level = mantissa * _power(jnp.clip(exponent - size.exponent, -100, 100), tau.dtype)
    excess = jnp.where(size.head == level, 0, size.head - level) + size.tail
    return excess <= _slack(tau.dtype) * level


def _quotient(tau: Array, size: _Scaled) -> _Scaled:
    """The factor tau / |g|: nan for a tau below 0 or nan, 0 for an infinite norm."""
    mantissa, exponent = _split(jnp.where(tau >= 0, tau, jnp.nan), tau.dtype)
    finite = jnp.isfinite(size.head)
    head = mantissa / size.head
    product, error = _product(head, jnp.where(finite, size.head, 1))
    tail = (((mantissa - product) - error) - head * size.tail) / size.head
    return _Scaled(head, jnp.where(finite & (size.head > 0), tail, 0), exponent - size.exponent)


def _times(leaf: Array, factor: _Scaled) -> Array:
    """`leaf` times `factor`, which is at most 1: rounded toward zero to the dtype of the leaf."""
    mantissa, exponent = _split(leaf, factor.head.dtype)
    head, error = _product(mantissa, factor.head)
    head, tail = _normal(head, error + mantissa * factor.tail)
    high = jnp.where(head < 0, -tail, tail) < -_slack(head.dtype) * jnp.abs(head)
    return _join(
        jnp.where(high, _one_ulp_lower(head), head), exponent + factor.exponent, leaf.dtype
    )


def _power_times(values: Array, factor: _Scaled) -> Array:
    """`values` times the head of `factor`, in ordinary arithmetic, which can be differentiated."""
    half = factor.exponent // 2
    for exponent in (half, factor.exponent - half):
        values = values * _power(exponent, values.dtype)
    return values * factor.head


def _product(a: Array, b: Array) -> tuple[Array, Array]:
    """The product a b and its error, exactly (Dekker 1971)."""
    # Without the barriers a compiler may contract a product and a sum, and the error is lost.
    product = _barrier(a * b)
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, _barrier(error)


def _halves(a: Array) -> tuple[Array, Array]:
    """Two floats of half the digits each, whose sum is `a`."""
    digits = (_finfo(a.dtype).nmant + 1) // 2
    high = lax.bitcast_convert_type(_bits(a) >> digits << digits, a.dtype)
    return high, a - high


def _add(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
    """The sum of two numbers of a head and a tail each (Knuth's two-sum)."""
    head = one[0] + other[0]
    moved = head - one[0]
    tail = (one[0] - (head - moved)) + (other[0] - moved) + (one[1] + other[1])
    return _normal(head, tail)


def _normal(head: Array, tail: Array) -> tuple[Array, Array]:
    """The same sum with a tail of at most half an ulp of the head, which it must not exceed."""
    total = head + tail
    return total, tail - (total - head)


def _sum(heads: Array, tails: Array) -> tuple[Array, Array]:
    """The sum of `(n,)` heads and tails, along rows and columns: an error of order sqrt(n) u²."""
    num_columns = int(np.ceil(np.sqrt(heads.size)))
    padding = (0, -heads.size % num_columns)
    table = tuple(jnp.pad(v, padding).reshape(-1, num_columns) for v in (heads, tails))
    zero = jnp.zeros((), heads.dtype)
    for _ in range(2):
        table = lax.reduce(table, (zero, zero), _add, (0,))
    return table[0], table[1]


def _root(head: Array, tail: Array) -> tuple[Array, Array]:
    root = jnp.sqrt(head)
    square, error = _product(root, root)
    rest = ((head - square) - error) + tail
    return _normal(root, jnp.where(root > 0, rest / (2 * jnp.where(root > 0, root, 1)), 0))


# ---- bits


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, _unsigned(x.dtype))


def _unsigned(dtype: Any) -> Any:
    return jnp.dtype(f"uint{_finfo(dtype).bits}")


def _magnitude(x: Array) -> Array:
    """The bits of |x|, which are ordered as |x| is."""
    sign = _finfo(x.dtype).bits - 1
    magnitude: Array = _bits(x) & ((1 << sign) - 1)
    return magnitude


def _is_negative(x: Array) -> Array:
    negative: Array = _bits(x) >> (_finfo(x.dtype).bits - 1) == 1
    return negative


def _power(exponent: Array, dtype: Any) -> Array:
    """2^exponent, exactly, and the smallest normal number for exponents below its own."""
    info = _finfo(dtype)
    biased = jnp.maximum(exponent, info.minexp) + (1 - int(info.minexp))
    return lax.bitcast_convert_type(biased.astype(_unsigned(dtype)) << info.nmant, dtype)


def _scaled_down(mantissa: Array, exponent: Array, largest: Array) -> Array:
    return mantissa * _power(exponent - largest, mantissa.dtype)


def _split(x: Array, wide: Any) -> tuple[Array, Array]:
    """Mantissa in `wide` and integer exponent, exactly; 1 <= |mantissa| < 2 for normal numbers.

    By bits and not by arithmetic, because XLA on CPU takes subnormal operands for 0.
    """
    info = _finfo(x.dtype)
    biased = (_magnitude(x) >> info.nmant).astype(jnp.int32)
    fraction = _bits(x) & ((1 << info.nmant) - 1)
    mantissa = fraction.astype(wide) * 2.0**-info.nmant + (biased > 0)
    mantissa = jnp.where(_is_negative(x), -mantissa, mantissa)
    mantissa = jnp.where(jnp.isfinite(x), mantissa, x.astype(wide))
    return mantissa, jnp.maximum(biased, 1) + (int(info.minexp) - 1)


def _join(mantissa: Array, exponent: Array, dtype: Any) -> Array:
    """The number mantissa 2^exponent in `dtype`, rounded toward zero; inf above the range."""
    wide, info = _finfo(mantissa.dtype), _finfo(dtype)
    magnitude = _magnitude(mantissa)
    implicit = jnp.where(magnitude == 0, 0, 1 << wide.nmant).astype(magnitude.dtype)
    fraction = implicit | (magnitude & ((1 << wide.nmant) - 1))
    biased = (magnitude >> wide.nmant).astype(jnp.int32) + int(wide.minexp - info.minexp)
    biased = biased + exponent
    # Below the normal numbers the exponent stays and the fraction moves to the right instead.
    place = jnp.maximum(biased, 1)
    shift = jnp.clip(wide.nmant - info.nmant + place - biased, 0, wide.nmant + 1)
    bits = ((place - 1).astype(fraction.dtype) << info.nmant) + (
        fraction >> shift.astype(fraction.dtype)
    )
    value = lax.bitcast_convert_type(bits.astype(_unsigned(dtype)), dtype)
    value = jnp.where((biased > 2 * (int(info.maxexp) - 1)) & (magnitude > 0), jnp.inf, value)
    value = jnp.where(_is_negative(mantissa), -value, value)
    return jnp.where(jnp.isfinite(mantissa), value, mantissa.astype(dtype))


def _one_ulp_lower(x: Array) -> Array:
    """The next float toward zero; `x` where it is 0 or not finite."""
    lower = lax.bitcast_convert_type(_bits(x) - 1, x.dtype)
    return jnp.where((x != 0) & jnp.isfinite(x), lower, x)
