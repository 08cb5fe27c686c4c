"""The largest singular values of a Jacobian that is never written out: Golub, Kahan and Lanczos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis.anatomy import Anatomy
from gradlab.diagnosis.program import evaluate
from gradlab.errors import BadInput

_SPARE = 12  # steps beyond the values asked for
_PROBES = 8


@dataclass(frozen=True)
class Singular:
    """The largest singular values of a Jacobian, with what bounds their error.

    Attributes:
        values: `(k,)`, in descending order.
        bounds: `(k,)`: a singular value lies within so much of each.
        frobenius: a randomised estimate of the root of the sum of all squared singular values.
        frobenius_error: its standard error.
        since, until: the layers between whose outputs the Jacobian is taken.
    """

    values: np.ndarray
    bounds: np.ndarray
    frobenius: float
    frobenius_error: float
    since: str
    until: str


def top(
    anatomy: Anatomy, inputs: Sequence[Any], k: int, since: str | None, until: str | None
) -> Singular:
    """The k largest singular values between two layers' outputs, whole batch."""
    if k < 1:
        raise BadInput(f"top_singular_values is asked for {k} values; it gives at least 1.")
    start, end = places(anatomy, since, until)
    names = [layer.name for layer in anatomy.layers]
    source, target = anatomy.layers[start].pre, anatomy.layers[end].pre
    kind = anatomy.program.types[source]

    with jax.default_matmul_precision("highest"):
        forward, back = _maps(
            between(anatomy, inputs, source, target), jnp.zeros(kind.shape, kind.dtype)
        )
        size = math.prod(kind.shape)
        values, bounds = bidiagonalised(forward, back, size, k)
        drawn = jax.random.normal(jax.random.key(1), (_PROBES, size))
        squares = np.array([float(jnp.sum(jnp.square(forward(v)))) for v in drawn])
    mean = float(np.sqrt(squares.mean()))
    error = float(squares.std(ddof=1) / math.sqrt(_PROBES) / (2 * mean)) if mean else 0.0
    return Singular(values, bounds, mean, error, names[start], names[end])


def between(
    anatomy: Anatomy, inputs: Sequence[Any], source: int, target: int
) -> Callable[[Array], Array]:
    """From what is added to one value of a run, the other value."""

    def run(added: Array) -> Array:
        seen: list[Array] = []

        def at(number: int, value: Any) -> Any:
            if number == source:
                value = value + added
            if number == target:
                seen.append(value)
            return value

        evaluate(anatomy.program, inputs, at)
        return seen[0]

    return run


def places(anatomy: Anatomy, since: str | None, until: str | None) -> tuple[int, int]:
    """The numbers of two layers, the first and the last one where none is named.

    Raises:
        BadInput: for a name that is none, and layers in the wrong order.
    """
    names = [layer.name for layer in anatomy.layers]
    start, end = _place(names, since, 0), _place(names, until, len(names) - 1)
    if start >= end:
        raise BadInput(f"{names[start]} does not stand before {names[end]}.")
    return start, end


def _place(names: list[str], name: str | None, default: int) -> int:
    if name is None:
        return default
    if name not in names:
        raise BadInput(
            f'"{name}" is no layer; there are {", ".join(names[:4])}, ... ({len(names)}).'
        )
    return names.index(name)


Map = Callable[[Array], Array]


def _maps(function: Map, at: Array) -> tuple[Map, Map]:
    """`J v` and `Jᵀ u` on flat vectors, both from a reverse pass alone: v -> (Jᵀ)ᵀ v.

    So a layer that has only a reverse rule (a custom_vjp) needs no forward one.
    """
    output = jax.eval_shape(function, at)

    @jax.jit
    def back(u: Array) -> Array:
        pull = jax.vjp(function, at)[1]
        return pull(u.reshape(output.shape).astype(output.dtype))[0].ravel()

    @jax.jit
    def forward(v: Array) -> Array:
        pull = jax.vjp(function, at)[1]
        transposed = jax.linear_transpose(
            lambda u: pull(u)[0], jax.ShapeDtypeStruct(output.shape, output.dtype)
        )
        return transposed(v.reshape(at.shape).astype(at.dtype))[0].ravel()

    return forward, back


def bidiagonalised(forward: Map, back: Map, size: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`(k,)` largest singular values and bounds on their errors.

    Golub and Kahan 1965, with full reorthogonalisation; |J v - sigma u| and |Jᵀ u - sigma v| bound
    the error (Parlett 1998, section 4.5). nan where a product leaves the range of its format.
    """
    num = min(size, k + _SPARE)
    v = np.random.default_rng(0).standard_normal(size)
    v /= np.linalg.norm(v)
    vs = [v]
    us: list[np.ndarray] = []
    images: list[np.ndarray] = []
    for _ in range(num):
        image = np.asarray(forward(jnp.asarray(vs[-1])), float)
        images.append(image)
        u = _orthogonal(image, us)
        if u is None:
            break
        us.append(u)
        following = _orthogonal(np.asarray(back(jnp.asarray(u)), float), vs)
        if following is None or len(vs) == size:
            break
        vs.append(following)
    basis, image = np.stack(vs[: len(images)], axis=1), np.stack(images, axis=1)
    if not np.isfinite(image).all():  # out of the range of the model's format
        return np.full(min(k, size), np.nan), np.full(min(k, size), np.inf)
    left, values, right = np.linalg.svd(image, full_matrices=False)
    k = min(k, len(values))
    bounds = []
    for i in range(k):
        residual = np.asarray(back(jnp.asarray(left[:, i])), float) - values[i] * (basis @ right[i])
        bounds.append(float(np.linalg.norm(residual)))
    return values[:k], np.array(bounds)


def _orthogonal(x: np.ndarray, others: list[np.ndarray]) -> np.ndarray | None:
    """`x` less its part in the span of others, of norm 1; None if nothing is left."""
    before = np.linalg.norm(x)
    for _ in range(2):
        for other in others:
            x = x - other * (other @ x)
    left = np.linalg.norm(x)
    return x / left if left > 1e-12 * before and before > 0 else None
