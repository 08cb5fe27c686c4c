"""Clipping by the global norm: for training, for the laboratory, and beside optax's.

    g <- g tau / max(|g|, tau)              Pascanu, Mikolov and Bengio 2013, algorithm 1

Two functions with two promises, in float16, bfloat16, float32 and float64, subnormal numbers
included; u is half an ulp of `wide`, the float format of the arithmetic (float64 where a leaf has
it, else float32):

- `clip`, and `clip_by_global_norm` as what optax takes, is for training: near the speed of
  optax's. Where the norm as computed is at most tau every bit of g is returned; otherwise every
  entry is the formula's value to 16 u and, in 16-bit formats and among subnormal numbers, an ulp,
  rounded toward zero there. The norm is a plain sum's: above tau by at most `(n/2 + 4) u` for n
  numbers, whatever the order in which they are summed. XLA sums so that a few u are seen, and
  the factor is 8 u low: then the norm is never above tau, and clipping twice is clipping once;
- `formula` is the laboratory's: every bit of g where |g| is at most tau, or above it by less than
  the `slack` 2^14 u² (0.0005 ulp in float32, 5e-13 in float64), which no format could show;
  otherwise the exact value of every entry rounded *toward zero*: less than one ulp low and never
  high (by more than the slack). So the norm is never above tau, and clipping twice is clipping
  once, bit for bit. It takes twice the digits (`norms`), and 10 to 30 times as long;
- in both an infinite entry makes the norm infinite: finite entries become 0, the limit of the
  formula, and infinite ones nan, as they have no limit. A nan anywhere makes everything nan.
  tau = inf never clips; a traced tau of 0 gives 0, one below 0 or nan gives nan;
- in both derivatives, of every order, are those of the formula, at a zero gradient of the identity.

Under `jax.vmap` both are right, but a branch becomes both of its sides: no speed is promised. Nor
is it where the norm or tau is out of range, which is measured again; benchmarks/clipping.md has
the ratios to optax's, of running and of compiling.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import bits, formats, norms, quick_norms
from gradlab.arithmetic.quick_norms import AxisName
from gradlab.measuring.clip_report import monitors, report
from gradlab.measuring.global_norm import (
    Tree,
    clipped_tangent,
    cosine,
    inner_product,
    leaves_of,
    norm,
    shares,
)
from gradlab.measuring.monitor import KnownClip, MonitorState, Record, monitor, record, scalars

__all__ = [
    "CAUSES",
    "Comparison",
    "MonitorState",
    "Record",
    "clip",
    "clip_by_global_norm",
    "compare",
    "cosine",
    "explain",
    "formula",
    "monitor",
    "monitors",
    "norm",
    "optax_clip",
    "record",
    "report",
    "scalars",
    "shares",
    "ulps",
]

# ---- the formula


def clip(grads: Tree, tau: ArrayLike, axis_name: AxisName = None) -> Tree:
    """`grads` scaled to norm `tau` where their global norm is above it, unchanged elsewhere.

    Args:
        grads: any pytree of real floating leaves; each keeps its shape and dtype.
        tau: the largest norm let through, in the unit of the gradient.
        axis_name: in `jax.shard_map`, the mesh axes over which the gradient is split, so that all
            its shards are clipped by one norm.

    Raises:
        ValueError: tau is not one number above 0, where its value is known.
        TypeError: a leaf is not real and floating.
    """
    _check_tau(tau)
    return _mapped(partial(_clip, axis_name), grads, tau)


def formula(grads: Tree, tau: ArrayLike) -> Tree:
    """The formula to the last digit, rounded toward zero, for every tau and without refusal."""
    return _mapped(_formula, grads, tau)


def log_norms_after(log_norms: Array, tau: ArrayLike) -> Array:
    """The log norms of parts `(..., parts)` after clipping the norm of all together to `tau`.

    For parts whose norms are beyond a float: of a gradient in every layer of a deep chain.
    """
    total = jax.nn.logsumexp(2 * log_norms, axis=-1, keepdims=True) / 2
    return log_norms + jnp.minimum(0.0, jnp.log(tau) - total)


def clip_by_global_norm(tau: ArrayLike, axis_name: AxisName = None) -> optax.GradientTransformation:
    """`clip` as an optax transformation without state: a drop-in for the one of optax.

    Raises:
        ValueError: tau is not one number above 0, where its value is known.
    """
    _check_tau(tau)

    def update(updates: Tree, state: Any, params: Tree = None) -> tuple[Tree, Any]:
        del params
        # Named only where there is one: what takes the place of `clip` need not know of it.
        named = {} if axis_name is None else {"axis_name": axis_name}
        return clip(updates, tau, **named), state

    if axis_name is not None:  # its norm is that of all shards, which a watch does not see
        return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
    known = KnownClip(lambda _: optax.EmptyState(), update)
    known.limit = tau
    return known


def _check_tau(tau: ArrayLike) -> None:
    if jnp.ndim(tau) != 0:
        raise ValueError(f"tau has shape {jnp.shape(tau)}; allowed: one number above 0")
    if not isinstance(tau, jax.core.Tracer) and not np.asarray(tau) > 0:
        raise ValueError(f"tau is {tau}; allowed: a number above 0")


def _mapped(rule: Any, grads: Tree, tau: ArrayLike) -> Tree:
    leaves = leaves_of(grads)
    wide = norms.wide(leaves)
    leaves = [leaf if leaf.dtype == wide else formats.settled(leaf) for leaf in leaves]
    clipped = rule(leaves, jnp.asarray(tau, wide)) if leaves else []
    return jax.tree.unflatten(jax.tree.structure(grads), clipped)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _clip(axis_name: AxisName, leaves: list[Array], tau: Array) -> list[Array]:
    return quick_norms.clip(leaves, tau, axis_name)


@_clip.defjvp
def _clip_jvp(axis_name: AxisName, primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    (leaves, tau), (dleaves, dtau) = primals, tangents
    keep = quick_norms.is_within(leaves, tau, axis_name)
    slope = clipped_tangent(leaves, tau, dleaves, dtau, keep, axis_name)
    return _clip(axis_name, leaves, tau), slope


@jax.custom_jvp
def _formula(leaves: list[Array], tau: Array) -> list[Array]:
    size = norms.measure(leaves)
    keep = norms.is_within(size, tau)
    factor = norms.quotient(tau, size)
    return [jnp.where(keep, leaf, norms.times(leaf, factor)) for leaf in leaves]


@_formula.defjvp
def _formula_jvp(primals: Any, tangents: Any) -> tuple[list[Array], list[Array]]:
    (leaves, tau), (dleaves, dtau) = primals, tangents
    keep = norms.is_within(norms.measure(leaves), tau)
    return _formula(leaves, tau), clipped_tangent(leaves, tau, dleaves, dtau, keep)


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
    trees = [leaves_of(tree) for tree in (grads, by_optax, by_formula)]
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
        cosine_optax=inner_product(units[0], units[1]),
        cosine_formula=inner_product(units[0], units[2]),
    )


def explain(grads: Tree, tau: ArrayLike) -> str:
    """One sentence: how far optax's result is from the formula's, where first, and why."""
    if not jax.tree.leaves(grads):
        return f"optax and the formula agree: {CAUSES['none']}"
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
    dtypes = {leaf.dtype for leaf in leaves_of(grads)}
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
