"""Ways forward and back through networks with a name, written out: no chain, nothing derived.

`backpropagation` has layers that multiply and add; here are those that standardise, LSTMs, and the
tanh network whose first steps a coordinate check looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from gradlab.arithmetic import precision, scaled
from gradlab.measuring.backpropagation import Pass, loss_and_slope
from gradlab.measuring.coordinates import Moves
from gradlab.measuring.training import Data
from gradlab.models.ensembles import Affine, Branch

# An activation, and its slope by what it gave.
_PHI: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda h: jnp.where(h > 0, h, 0.0), lambda x: jnp.where(x > 0, 1.0, 0.0)),
    "tanh": (jnp.tanh, lambda x: (1 - x) * (1 + x)),
    "linear": (lambda h: h, jnp.ones_like),
}

_TANH, _LINEAR = ("Xavier", "residual"), ("orthogonal",)
_STANDARDISED = {"layer norm": 1, "batch norm": 0}  # along which axis of `(batch_size, width)`


class Pulled(NamedTuple):
    """What becomes of a row on its way back.

    Attributes:
        logs: log of its norm behind the input and behind each layer, `(depth + 1,)` (nats).
        rounding: by how much rounding can make another way to them differ, `()`.
    """

    logs: Array
    rounding: Array


@precision.highest
def of_network(name: str, params: Any, readout: Array, batch: Data) -> Pass:
    """The pass of a batch through a network of `networks.NETWORKS` and a linear read-out.

    The gradient is of (params, readout); the read-out's norm is the last.

    Args:
        name: its name there.
        params: its chain's, of which W is `(depth, width, width)`, four times as high an LSTM's.
        readout: `(num_classes, width)`, an LSTM's `(num_classes, 2 width)`.
        batch: inputs `(batch_size, width)`, as which an LSTM's output and memory start, and labels.
    """
    z_L, seen = _forwards(name, params, batch.x)
    logits = z_L @ readout.T
    loss, off = loss_and_slope(logits, batch.y)
    own, back = _backwards(name, params, seen, off @ readout)
    last = off.T @ z_L
    parts = [jnp.sum(leaf.reshape(len(leaf), -1) ** 2, axis=1) for leaf in jax.tree.leaves(own)]
    norms = jnp.append(jnp.sqrt(sum(parts)), _norm(last))
    # Of a mean over examples that cancel the root of their number is lost.
    relative = len(batch.y) ** 0.5 * _rounding(params, seen, z_L, back)
    return Pass(loss, (own, last), norms, relative * _largest(loss, norms, logits))


@precision.highest
def pulled_back(name: str, params: Any, x: Array, v: Array) -> Pulled:
    """What becomes of a row on its way back through a network of `networks.NETWORKS`.

    Args:
        name: its name there.
        params: its chain's.
        x: inputs `(batch_size, width)`.
        v: the row, as long as all that leaves the last layer.
    """
    z_L, seen = _forwards(name, params, x)
    _, back = _backwards(name, params, seen, v.reshape(z_L.shape))
    return Pulled(jnp.log(jax.vmap(_norm)(back)), _rounding(params, seen, z_L, back))


def _forwards(name: str, params: Any, x: Array) -> tuple[Array, tuple[Array, Array]]:
    """What leaves the last layer, and what enters each, with its sums W z + b."""
    z = jnp.concatenate([x, x], axis=1) if name == "LSTM" else x
    return jax.lax.scan(lambda z, layer: _ahead(name, layer, z), z, params)


def _backwards(name: str, params: Any, seen: Any, delta: Array) -> tuple[Any, Array]:
    """The gradient of all parameters, and what comes behind the input and behind each layer."""

    def back(delta: Array, at: Any) -> tuple[Array, tuple[Any, Array]]:
        params, seen = at
        before, own = _back(name, params, seen, delta)
        return before, (own, before)

    own, before = jax.lax.scan(back, delta, (params, seen), reverse=True)[1]
    return own, jnp.concatenate([before, delta[None]])


def _ahead(name: str, params: Any, z: Array) -> tuple[Array, tuple[Array, Array]]:
    W, b, skip, factor = _parts(params)
    if name == "LSTM":
        h, c = jnp.split(z, 2, axis=1)
        sums = h @ W.T + b[None]
        f, i, o, g = _gates(sums)
        c = f * c + i * g
        return jnp.concatenate([o * jnp.tanh(c), c], axis=1), (z, sums)
    sums = z @ W.T + b[None]
    return skip * z + factor * _phi(name)[0](_standardised(name, sums)[0]), (z, sums)


def _back(name: str, params: Any, seen: tuple[Array, Array], delta: Array) -> tuple[Array, Any]:
    """Of what comes behind a layer: what comes before it, and the gradient of its parameters."""
    (W, _, skip, factor), (z, sums) = _parts(params), seen
    if name == "LSTM":
        h, c = jnp.split(z, 2, axis=1)
        f, i, o, g = _gates(sums)
        out = jnp.tanh(f * c + i * g)
        delta_h, delta_c = jnp.split(delta, 2, axis=1)
        delta_c += delta_h * o * (1 - out**2)
        gates = delta_c * c * f * (1 - f), delta_c * g * i * (1 - i), delta_h * out * o * (1 - o)
        at_sums = jnp.concatenate([*gates, delta_c * i * (1 - g**2)], axis=1)
        before = jnp.concatenate([at_sums @ W, delta_c * f], axis=1)
        return before, Affine(at_sums.T @ h, jnp.sum(at_sums, axis=0))
    (phi, slope), (n, deviation) = _phi(name), _standardised(name, sums)
    x = phi(n)
    at_n = factor * delta * slope(x)
    if name in _STANDARDISED:  # neither the mean nor the deviation of n can change
        mean = jnp.mean(at_n, axis=_STANDARDISED[name], keepdims=True)
        along = jnp.mean(at_n * n, axis=_STANDARDISED[name], keepdims=True)
        at_n = (at_n - mean - n * along) / deviation
    affine = Affine(at_n.T @ z, jnp.sum(at_n, axis=0))
    before = skip * delta + at_n @ W
    return before, Branch(affine, jnp.sum(delta * x)) if isinstance(params, Branch) else affine


def _parts(params: Any) -> tuple[Array, Array, float, Any]:
    """W, b, and the factors of the identity and of the branch."""
    return (*params.affine, 1.0, params.factor) if isinstance(params, Branch) else (*params, 0.0, 1)


def _phi(name: str) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    return _PHI["tanh" if name in _TANH else "linear" if name in _LINEAR else "relu"]


def _standardised(name: str, sums: Array) -> tuple[Array, Array]:
    """The sums less their mean, over their deviation, and that one; or as they are."""
    if name not in _STANDARDISED:
        return sums, jnp.ones((), sums.dtype)
    axis = _STANDARDISED[name]
    deviation = jnp.std(sums, axis=axis, keepdims=True)
    return (sums - jnp.mean(sums, axis=axis, keepdims=True)) / deviation, deviation


def _gates(sums: Array) -> tuple[Array, ...]:
    """Forget, input and output gate, and the candidate."""
    *gates, candidate = jnp.split(sums, 4, axis=1)
    return *(1 / (1 + jnp.exp(-gate)) for gate in gates), jnp.tanh(candidate)


def _rounding(params: Any, seen: tuple[Array, Array], z_L: Array, back: Array) -> Array:
    """By how much two ways can differ, relative to what either gives, `()`.

    Each product there and each back is off by n^1.5 eps where signs are random (Higham 2002,
    sections 3.5 and 3.7), and so are the sums over a batch. An error of a state grows on its way
    to the end as |delta| |z| falls from there to the end: relative to what it is an error of.
    """
    W = _parts(params)[0]
    n, reach = max(W.shape[-1], len(z_L)), jax.vmap(_norm)(back[:-1]) * jax.vmap(_norm)(seen[0])
    grows = jnp.maximum(1.0, jnp.max(reach) / (_norm(back[-1]) * _norm(z_L)))
    return 4 * (len(W) + 1) * n**1.5 * scaled.eps(z_L.dtype) * grows


def _largest(loss: Array, norms: Array, logits: Array) -> Array:
    """What a relative error is of: a loss changes by at most two errors of its logits."""
    return loss + jnp.max(norms) + 2 * jnp.max(jnp.abs(logits))


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2))


def rescaled(data: Data) -> Data:
    """The data with inputs `(num_examples, width)` of mean square 1 each, as they ought to be."""
    return data._replace(x=data.x / jnp.sqrt(jnp.mean(data.x**2, axis=1, keepdims=True)))


# ---- a tanh network without biases


@precision.highest
def of_tanh(W: Sequence[Array], batch: Data) -> Pass:
    """The pass of a batch through tanh layers without biases, and a linear one.

    The gradient is a list of `W`'s shapes.

    Args:
        W: each layer's matrix, `(out, in)`, the last one's outputs being logits.
        batch: inputs `(batch_size, in)` and labels.
    """
    z = _tanh_states(W, batch.x)
    loss, delta = loss_and_slope(z[-1], batch.y)
    own, reach = [], []
    for k in reversed(range(len(W))):
        own.append(delta.T @ z[k])
        delta = (delta @ W[k]) * ((1 - z[k]) * (1 + z[k]))
        reach.append(_norm(delta) * _norm(z[k]))
    norms, n = jnp.stack([_norm(G) for G in reversed(own)]), max(max(A.shape) for A in W)
    grows = jnp.max(jnp.stack(reach[:-1])) / reach[0]  # the input has no slope, nor an error
    relative = 4 * len(W) * n**1.5 * len(batch.y) ** 0.5 * scaled.eps(loss.dtype) * grows
    return Pass(loss, own[::-1], norms, relative * _largest(loss, norms, z[-1]))


@precision.highest
def tanh_step(W: Sequence[Array], batch: Data, is_sign: ArrayLike, rates: ArrayLike) -> list[Array]:
    """What a step down the loss adds to each matrix, or one by the gradient's sign.

    Args:
        W: as of `of_tanh`, and so is
        batch: what the loss is of.
        is_sign: whether it is by the sign, 0 or 1.
        rates: of each matrix, `(num_matrices,)`.
    """
    G = of_tanh(W, batch).gradient
    ways = [is_sign * ((g > 0) * 1.0 - (g < 0) * 1.0) + (1 - is_sign) * g for g in G]
    return [-jnp.asarray(rates)[k] * way for k, way in enumerate(ways)]


@precision.highest
def tanh_moves(
    W: Sequence[Array], batch: Data, is_sign: ArrayLike, rates: ArrayLike, num_steps: int
) -> tuple[Moves, Array]:
    """`coordinates.moves` of what leaves each layer, and by how much rounding can move their logs.

    Arguments as of `tanh_step`. What is moved little is lost in the rounding of what it is added
    to: the rounding is of `start`, `first` and `later`, `(3, num_matrices)`.
    """
    z, step, slopes = _tanh_states(W, batch.x), tanh_step(W, batch, is_sign, rates), []
    dz = jnp.zeros_like(batch.x)
    for k, (A, dA) in enumerate(zip(W, step, strict=True)):
        dz = dz @ A.T + z[k] @ dA.T
        dz *= 1.0 if k == len(W) - 1 else (1 - z[k + 1]) * (1 + z[k + 1])
        slopes.append(dz)
    ends = _tanh_states(tanh_steps(W, [batch] * num_steps, is_sign, rates)[0], batch.x)
    moved = [after - before for after, before in zip(ends, z, strict=True)]
    logs = [jnp.stack([_log_rms(x) for x in part]) for part in (z[1:], slopes, moved[1:])]
    once = jnp.broadcast_to(of_tanh(W, batch).rounding, logs[0].shape)
    size = jnp.maximum(1.0, jnp.exp(logs[0]))
    return Moves(*logs), jnp.stack([once, once, num_steps * once * (1 + size / jnp.exp(logs[2]))])


@precision.highest
def tanh_steps(
    W: Sequence[Array], batches: Sequence[Data], is_sign: ArrayLike, rates: ArrayLike
) -> tuple[list[Array], Array]:
    """The matrices after a step for each batch; `(num_steps, 2)`, losses before it and rounding.

    Arguments as of `tanh_step`.
    """
    now, losses = list(W), []
    for batch in batches:
        one = of_tanh(now, batch)
        losses.append(jnp.stack([one.loss, one.rounding]))
        step = tanh_step(now, batch, is_sign, rates)
        now = [A + dA for A, dA in zip(now, step, strict=True)]
    return now, jnp.stack(losses)


def _tanh_states(W: Sequence[Array], x: Array) -> list[Array]:
    """The inputs, what leaves each layer, and the logits."""
    z = [x]
    for A in W[:-1]:
        z.append(jnp.tanh(z[-1] @ A.T))
    return [*z, z[-1] @ W[-1].T]


def _log_rms(x: Array) -> Array:
    return jnp.log(_norm(x)) - jnp.log(jnp.asarray(x.size, x.dtype)) / 2
