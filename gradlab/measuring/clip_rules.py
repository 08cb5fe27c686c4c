"""What other libraries do in the place of the formula: each a rule from leaves and tau to leaves.

Those of optax are optax's own. The others are models, written down from the source that each
names: where one of them fails, the library itself has not been run. Of those of PyTorch and
TensorFlow every outcome was held against the library that `held` names; `make rivals` does it again
with the ones that it installs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from gradlab.arithmetic import norms, quick_norms
from gradlab.measuring import clipping
from gradlab.measuring.global_norm import Tree, leaves_of

Leaves = list[Array]


@dataclass(frozen=True)
class Rule:
    """A way to clip.

    Attributes:
        apply: from the leaves of a gradient and a threshold to the leaves after it.
        source: where it comes from.
        is_model: whether it was written down here from its source, and is not the library itself.
        held: the library against which a model was held, by its release; none where empty.
    """

    apply: Callable[[Leaves, Array], Leaves]
    source: str
    is_model: bool = False
    held: str = ""


def plain_norm(leaves: Leaves) -> Array:
    """The root of the sum of squares as most libraries take it, `()`, in the leaves' own format."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(leaf)) for leaf in leaves), start=jnp.zeros((), "f2")))


def times(leaves: Leaves, factor: Array) -> Leaves:
    """Every leaf times one number, in its own format."""
    return [leaf * factor.astype(leaf.dtype) for leaf in leaves]


def torch(leaves: Leaves, tau: Array) -> Leaves:
    """A norm of the leaves' norms, and `min(1, tau/(norm + 1e-6))`.

    Each is summed in float32 at least, and rounded to its own format.
    """

    def size(x: Array) -> Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jnp.sqrt(jnp.sum(jnp.square(wide))).astype(x.dtype)

    total = size(jnp.stack([size(leaf) for leaf in leaves]))
    return times(leaves, jnp.minimum(tau / (total + 1e-6), 1))


def tensorflow(leaves: Leaves, tau: Array) -> Leaves:
    """`tau min(1/norm, 1/tau)`, and nan everywhere where the norm is not finite.

    Leaves of several formats are refused, for which nan stands here too.
    """
    if len({leaf.dtype for leaf in leaves}) > 1:
        return [jnp.full_like(leaf, jnp.nan) for leaf in leaves]
    size = plain_norm(leaves).astype(jnp.float32)
    factor = tau * jnp.minimum(1 / size, 1 / tau)
    return times(leaves, jnp.where(jnp.isfinite(size), factor, jnp.nan))


def sentinel(leaves: Leaves, tau: Array) -> Leaves:
    """PyTorch's factor of a norm that stands as -1 where it is not finite."""
    size = plain_norm(leaves).astype(jnp.float32)
    size = jnp.where(jnp.isfinite(size), size, -1)
    return times(leaves, jnp.minimum(tau / (size + 1e-6), 1))


def short_norm(leaves: Leaves, tau: Array) -> Leaves:
    """The factor of a norm whose squares are added up in bfloat16, one after another."""

    def added(total: Array, entry: Array) -> tuple[Array, None]:
        return (total + jnp.square(entry)).astype(jnp.bfloat16), None

    total = jnp.zeros((), jnp.bfloat16)
    for leaf in leaves:
        total, _ = jax.lax.scan(added, total, leaf.ravel().astype(jnp.bfloat16))
    size = jnp.sqrt(total.astype(jnp.float32))
    return times(leaves, jnp.where(size > tau, tau / size, 1))


def _optax(make: Callable[[Array], optax.GradientTransformation]) -> Callable[..., Leaves]:
    def apply(leaves: Leaves, tau: Array) -> Leaves:
        rule = make(_threshold(leaves, tau))
        # Weights of norm 1, for rules that hold a gradient against them.
        params = [jnp.zeros_like(leaf).at[..., 0].set(1) for leaf in leaves]
        return list(rule.update(leaves, rule.init(params), params)[0])

    return apply


def _threshold(leaves: Leaves, tau: Array) -> Array:
    """Tau in the format of the leaves, which optax would widen otherwise."""
    (dtype, *others) = {leaf.dtype for leaf in leaves}
    return tau if others else jnp.asarray(tau, dtype)


def _per_example(leaves: Leaves, tau: Array) -> Leaves:
    batch = [leaf[None] for leaf in leaves]
    return list(optax.per_example_global_norm_clip(batch, _threshold(leaves, tau))[0])


def _own(leaves: Leaves, tau: Array) -> Leaves:
    return list(clipping.clip(leaves, tau))


def _formula(leaves: Leaves, tau: Array) -> Leaves:
    return list(clipping.formula(leaves, tau))


RULES = {
    "gradlab clip": Rule(_own, "gradlab.clipping.clip"),
    "gradlab formula": Rule(_formula, "gradlab.clipping.formula"),
    "optax global norm": Rule(_optax(optax.clip_by_global_norm), "optax.clip_by_global_norm"),
    "optax value": Rule(_optax(optax.clip), "optax.clip"),
    "optax block rms": Rule(_optax(optax.clip_by_block_rms), "optax.clip_by_block_rms"),
    "optax adaptive": Rule(_optax(optax.adaptive_grad_clip), "optax.adaptive_grad_clip"),
    "optax per example": Rule(_per_example, "optax.per_example_global_norm_clip"),
    "optax if finite": Rule(
        _optax(lambda tau: optax.apply_if_finite(optax.clip_by_global_norm(tau), 1)),
        "optax.apply_if_finite around clip_by_global_norm",
    ),
    "PyTorch": Rule(torch, "torch.nn.utils.clip_grad_norm_", is_model=True, held="torch 2.13"),
    "TensorFlow": Rule(tensorflow, "tf.clip_by_global_norm", is_model=True, held="tensorflow 2.20"),
    "sentinel of -1": Rule(sentinel, "DeepSpeed, pull request 8614", is_model=True),
    "norm in bfloat16": Rule(
        short_norm, "maxtext, issue 5143; Automodel, pull request 825", is_model=True
    ),
}


# ---- a threshold that follows the norms


class QuantileState(NamedTuple):
    """The norms so far, `(num_steps,)`, infinite where none has been, and how many there are."""

    norms: Array
    num_steps: Array


def by_quantile(part: float, num_steps: int) -> optax.GradientTransformation:
    """Clip at the `part` quantile of all norms before: AutoClip, Seetharaman and others 2020.

    The quantile is the ⌈part n⌉-th smallest of n norms; the first step is not clipped.

    Args:
        part: between 0 and 1.
        num_steps: the most steps that are ever taken.
    """

    def init(params: Tree) -> QuantileState:
        del params
        return QuantileState(jnp.full(num_steps, jnp.inf), jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: QuantileState, params: Tree = None) -> tuple[Tree, Any]:
        del params
        rank = jnp.ceil(part * state.num_steps).astype(jnp.int32)
        tau = jnp.sort(state.norms)[jnp.maximum(rank, 1) - 1]
        leaves = leaves_of(updates)
        root, exponent = quick_norms.measure(leaves, norms.wide(leaves))
        first, second = quick_norms.powers(exponent, root.dtype)
        size = root * first * second
        seen = state.norms.at[state.num_steps].set(size.astype(state.norms.dtype))
        return clipping.clip(updates, tau), QuantileState(seen, state.num_steps + 1)

    return optax.GradientTransformation(init, update)
