"""The gradient by time lag: how far back a recurrent function learns, and where to cut it.

`d loss / d state_(T-k)` over k: its exponent a step with an interval, and the shortest truncation
that keeps a stated share of it. Aicher, Foti and Fox 2019 (arXiv:1905.07473) bound the bias of a
truncated gradient by the same sum and the same geometric tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from gradlab.diagnosis import laws
from gradlab.errors import BadInput
from gradlab.measuring import jacobians
from gradlab.models import recurrent

Step = Callable[[Any, Any], tuple[Any, Any]]

# Batch means need a few batches, each of a few steps.
_FEWEST = 16


@dataclass(frozen=True)
class Lag:
    """The gradient of a loss of the last state, by lag.

    Attributes:
        log_norms: `(lags,)`, log |dL/dstate_(T-k)| (nats) for k = 0 ... T, in any range.
        exponent: nats a step, over the farther half of the lags: below 0 the gradient vanishes.
        interval: of the exponent, at `confidence`; the nearer half of the lags, in which the
            gradient turns to the direction that lasts, is left out of both.
        confidence: how often the interval holds the exponent.
    """

    log_norms: np.ndarray
    exponent: float
    interval: tuple[float, float]
    confidence: float

    def window(self, share: float) -> float:
        """The fewest steps whose gradients have `share` of the sum of all norms.

        What lies beyond the lags that were measured is counted by the upper end of the interval;
        infinite where that is no decay, or where more steps are needed than were measured; nan
        where the norms are not known.
        """
        if not 0 < share < 1:
            raise BadInput(f"The share is {share}; allowed: a number between 0 and 1.")
        upper = self.interval[1]
        if np.isnan(self.log_norms).any():
            return math.nan
        if upper >= 0:
            return math.inf
        kept = np.logaddexp.accumulate(self.log_norms)
        # A geometric tail behind the last lag: r/(1 - r) times its norm.
        beyond = self.log_norms[-1] + upper - math.log(-math.expm1(upper))
        enough = kept >= np.logaddexp(kept[-1], beyond) + math.log(share)
        return float(np.argmax(enough) + 1) if enough.any() else math.inf

    def __str__(self) -> str:
        low, high = self.interval
        what = (
            "vanishes" if high < 0 else "explodes" if low > 0 else "neither surely grows nor falls"
        )
        window = self.window(0.99)
        cut = (
            f"99 % of it is in the last {window:.0f} steps"
            if math.isfinite(window)
            else f"no truncation within {len(self.log_norms) - 1} steps surely keeps 99 % of it"
        )
        return (
            f"{self.exponent:+.4g} nats a step [{low:+.4g}, {high:+.4g}]: the gradient {what} "
            f"by lag; {cut}"
        )


def lag(
    step: Step,
    carry: Any,
    inputs: Any,
    loss: Callable[[Any], Array],
    *,
    confidence: float = 0.95,
) -> Lag:
    """The gradient of `loss(carry)` at the last state of a loop, by lag.

    `gl.lag(step, carry, inputs, loss)` where `jax.lax.scan(step, carry, inputs)` is the loop: an
    RNN, a state-space model, an ODE solver, a simulation.

    Args:
        step: `(carry, input) -> (carry, output)`; outputs are not looked at.
        carry: the first state, any pytree; only its real floating point leaves carry a gradient.
        inputs: a pytree of arrays whose first axis is time; `jnp.arange(num_steps)` where the loop
            reads none.
        loss: from the last carry to a number.
        confidence: of the interval.

    Raises:
        BadInput: for fewer than 16 steps, inputs that are not finite, or a carry without a floating
            point number.
    """
    inputs = jax.tree.map(jnp.asarray, inputs)
    num_steps = {np.shape(leaf)[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(inputs)}
    if len(num_steps) != 1 or min(num_steps) < _FEWEST:
        raise BadInput(
            f"The inputs have first axes of {sorted(num_steps)} steps; gl.lag takes one length of "
            f"at least {_FEWEST} for all."
        )
    _check_finite(inputs)
    if not 0 < confidence < 1:
        raise BadInput(f"The confidence is {confidence}; allowed: a number between 0 and 1.")
    loop = recurrent.of_scan(step, carry, inputs)
    if not loop.state.size:
        raise BadInput("The carry holds no real floating point number; it has no gradient.")
    found = jacobians.log_gradient_norms(loop.chain, loop.state, lambda z: loss(loop.carry(z)))
    logs = np.asarray(found, float)[::-1]
    # A step multiplies by a matrix: √size roundings of it (Higham and Mary 2019).
    one = jnp.ones((), loop.state.dtype)
    rounding = math.sqrt(loop.state.size) * float(jnp.nextafter(one, 2 * one) - one)
    return Lag(logs, *exponent(logs, confidence, rounding), confidence)


def _check_finite(inputs: Any) -> None:
    for leaf in jax.tree.leaves(inputs):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or isinstance(leaf, jax.core.Tracer):
            continue
        finite = np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(axis=1)
        if not finite.all():
            raise BadInput(
                f"Input {int(np.argmin(finite))} holds a number that is not finite; the gradient "
                "by lag is that of finite inputs."
            )


def exponent(
    logs: np.ndarray, confidence: float, rounding: float
) -> tuple[float, tuple[float, float]]:
    """The mean change a lag over the farther half, and its interval by batch means.

    √n batches of √n steps each (Flegal and Jones 2010), whose means are nearly independent; and
    what rounding may have put into a step.
    """
    if np.isneginf(logs[-1]):  # a gradient that is lost stays lost
        return -math.inf, (-math.inf, -math.inf)
    steps = np.diff(logs)[len(logs) // 2 :]
    if not np.isfinite(steps).all():
        return math.nan, (math.nan, math.nan)
    num = math.isqrt(len(steps))
    length = len(steps) // num
    means = steps[len(steps) - num * length :].reshape(num, length).mean(axis=1)
    value = float(means.mean())
    error = float(means.std(ddof=1)) / math.sqrt(num)
    width = laws.student(confidence, num - 1) * error + rounding
    return value, (value - width, value + width)
