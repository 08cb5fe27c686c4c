"""The laws that a healthy model keeps, each with its source, and what chance allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

import numpy as np

from gradlab.diagnosis.entries import Weights
from gradlab.models import ensembles, initialisers

FALSE_ALARMS = 0.01
"""How often chance may give a healthy model a finding: for the whole audit, all checks together."""

MOST_GROWTH = 2.0
"""A residual stream's mean square may be two nats above what depth scaling would leave of it: its
length is e times as long then, and each block's share in the sum is 1/e."""

MOST_DROWNED = 10.0
"""A parameter may be ten times as large as the state that it is added to: a hundredth of the mean
square still depends on the input. A convention."""

MOST_TRAINED = 10.0
"""Biases that have been trained, or drawn, may differ ten times in size from layer to layer: no law
says how far they move. A convention, as MOST_DROWNED is."""

SAME = 0.1
"""Two scales that differ by less than 10 % are one law: by less than any two laws' own (truncated
at two sigma or not: 12 %)."""


FEWEST_IN_LINE = 8
"""So many alike layers have a trend over the depth that one of them can be out of line with."""


def quantile(num_tests: int) -> float:
    """Standard errors that none of `num_tests` exceeds but for a share FALSE_ALARMS of audits."""
    return NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * max(num_tests, 1)))


def student(confidence: float, degrees: int) -> float:
    """What |t| of Student's distribution stays below with this probability: Student 1908.

    Found by halving.
    """
    low, high = 0.0, 1.0
    while _inside(high, degrees) < confidence:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, degrees) < confidence else (low, middle)
    return high


def _inside(t: float, degrees: int) -> float:
    """The probability that |t| is below t: a finite sum (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, term = math.cos(angle), 1.0
    is_odd = degrees % 2
    total = 0.0
    for k in range(2 if is_odd else 1, degrees, 2):
        total += term * (cosine if is_odd else 1.0)
        term *= cosine**2 * k / (k + 1)
    if is_odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def standard_error(kurtosis: float, size: int) -> float:
    """That of the log of a standard deviation estimated from `size` draws: the delta method."""
    return math.sqrt(max(kurtosis - 1, 0.0) / (4 * max(size, 1)))


def most_flat(num_units: int, z: float) -> float:
    """The largest share of units without a slope: a half, of a binomial distribution.

    With weights that are as often negative as positive a unit's h is negative on the first example
    with probability 1/2, so on all of a batch with no more.
    """
    return min(1.0, 0.5 + z / (2 * math.sqrt(max(num_units, 1))))


def log_gain(sigma_w: Sequence[float], slopes: Sequence[float]) -> float:
    """`sum log chi`, chi = sigma_w² E phi'(h)² at realised scales: Poole et al. 2016, section 3."""
    with np.errstate(divide="ignore"):
        return float(np.sum(2 * np.log(sigma_w) + np.log(slopes)))


def gain_error(spreads: Sequence[float], widths: Sequence[int]) -> float:
    """The standard deviation of that sum over draws of the weights: each mean is of `width` units.

    `spreads` are relative variances of phi'(h)², the same units on the whole batch (delta method).
    With those of phi(h)² it is that of the log of a state's mean square: 5/width a layer of relu
    (Hanin and Nica 2020, theorem 1).
    """
    return math.sqrt(sum(max(s, 0.0) / n for s, n in zip(spreads, widths, strict=True)))


def scaled_growth(log_growth: float, num_branches: int) -> float:
    """The log growth of a stream's mean square were each of its branches over √num_branches.

    Radford et al. 2019, section 2.3. Branches add their mean squares (Taki 2017).
    """
    if log_growth > 500:  # every branch multiplies
        return log_growth / num_branches
    return math.log1p(math.expm1(max(log_growth, 0.0)) / num_branches)


# ---- the laws that weights are drawn from


@dataclass(frozen=True)
class Draw:
    """A law of weights: the standard deviation that it gives a matrix."""

    name: str
    std: float


def draws(fan_in: int, fan_out: int) -> tuple[Draw, ...]:
    """The standard deviations of the usual laws."""
    fan = 1 / math.sqrt(fan_in)
    return (
        Draw("LeCun", fan),
        Draw("He", math.sqrt(2) * fan),
        Draw("Glorot", math.sqrt(2 / (fan_in + fan_out))),
        Draw("PyTorch default", math.sqrt(initialisers.DEFAULTS["PyTorch"].variance) * fan),
        Draw("He, fan out", math.sqrt(2 / fan_out)),
        Draw("0.02", 0.02),
        Draw("0.02, truncated", 0.02 * math.sqrt(ensembles.TRUNCATED_VARIANCE)),
    )


def named_draw(std: float, kurtosis: float, size: int, fans: tuple[int, int], z: float) -> str:
    """The name of the law that a standard deviation is one of, within its error, or ''."""
    if std == 0:
        return "0"
    error = z * standard_error(kurtosis, size) + 1e-3
    near = [d for d in draws(*fans) if abs(math.log(std / d.std)) < error]
    return near[0].name if near else ""


SHAPES = {"normal": (3.0, 24.0), "uniform": (1.8, 3.84), "truncated": (2.3655, 6.0)}
"""The kurtosis of each distribution, and `size` times the variance of its estimate."""

_BOUNDS = {"uniform": math.sqrt(3), "truncated": 2 / math.sqrt(ensembles.TRUNCATED_VARIANCE)}
"""The largest entry in standard deviations, where a distribution has a bound."""

LONGEST_MEMORY = 1e4
"""Steps of a loop: a convention, longer than any that is trained through."""


def shape_error(name: str, size: int, z: float) -> float:
    """How far a kurtosis may be from that of its distribution, by chance and a format's rounding.

    An estimate of it is skewed to the right (Anscombe and Glynn 1983), which half as much more
    allows for.
    """
    return 1.5 * z * math.sqrt(SHAPES[name][1] / max(size, 1)) + 0.02


def shape_of(weights: Weights, z: float) -> str:
    """The distribution of an array's entries, by kurtosis and bound within their errors, or ''.

    After training a kurtosis is any number, and bounds are passed: no name then.
    """
    for name, (value, variance) in SHAPES.items():
        error = z * math.sqrt(variance / max(weights.size, 1)) + 0.02
        bound = _BOUNDS.get(name, math.inf) * weights.std
        # The error of an estimated standard deviation, and a 16-bit format's rounding.
        spare = 1 + z * standard_error(value, weights.size) + 0.01
        off = max(weights.largest - abs(weights.mean), 0.0)
        if abs(weights.kurtosis - value) < error and off <= bound * spare:
            return name
    return ""


def usual_shape(weights: Sequence[Weights]) -> str:
    """The distribution that has the median kurtosis of some arrays, the nearest one."""
    rows = [w.kurtosis for w in weights if w.std > 0]
    middle = median(rows) if rows else 3.0
    return min(SHAPES, key=lambda name: abs(SHAPES[name][0] - middle))


def smallest_slope() -> float:
    """Of a gate, over the largest, 1/4: that of one which forgets once in LONGEST_MEMORY steps.

    Tallec and Ollivier 2018, section 2: a gate's value f keeps a state for 1/(1 - f) steps, and its
    slope there is f (1 - f).
    """
    return 4 / LONGEST_MEMORY


LEAST_KEPT = 2.0**-24
"""What is smaller than this beside 1 is rounded away in float32: half a unit in the last place."""


def memory_bias(num_steps: int) -> float:
    """The bias of a forget gate whose memory is `num_steps`: Tallec and Ollivier 2018, section 2.

    log(T - 1), at which a gate keeps 1 - 1/T a step, and 1/e over all.
    """
    return math.log(max(num_steps - 1, 1))


def held_norms(logs: Sequence[float] | np.ndarray, z: float) -> dict[int, tuple[float, float]]:
    """Members whose log norm stands above both neighbours', each with its share and excess.

    It has more than half of the squared norm of all, and both its rise and its fall stand out from
    the changes between all others, whose mean is the trend over the depth: studentised residuals
    (Grubbs 1950). Of a walk both changes are independent, so that each may have the root of the
    probability that `z` leaves; of independent norms chance is as rare, since both have one cause.
    """
    rows = np.asarray(logs, float)
    if len(rows) < FEWEST_IN_LINE or not np.isfinite(rows).all():
        return {}
    side = math.sqrt(math.erfc(z / math.sqrt(2)))
    changes = np.diff(rows)
    shares = np.exp(2 * rows - np.logaddexp.reduce(2 * rows))
    found = {}
    for k in np.flatnonzero(shares[1:-1] > 0.5) + 1:
        others = np.delete(changes, [k - 1, k])
        trend, error = float(others.mean()), float(others.std(ddof=1))
        excess = min(changes[k - 1] - trend, trend - changes[k])
        if excess > student(1 - 2 * side, len(others) - 1) * error * math.sqrt(1 + 1 / len(others)):
            found[int(k)] = float(shares[k]), math.exp(excess)
    return found


# ---- alike layers


def outliers(
    levels: Sequence[float], errors: Sequence[float], z: float, least: float = SAME
) -> dict[int, float]:
    """Members whose log scale is not that of their alike, to the log scale that it should be.

    The others must keep one law within their errors: a constant, or a power of the depth (as
    1/√layer is). Where more than a third do not, there is no law to keep, as in a trained model.
    What is off by less than `least` is not among them.
    """
    rows, errors_of = np.asarray(levels, float), np.asarray(errors, float)
    if len(rows) < 3:
        return {}
    if np.isnan(rows).any():
        return {}
    empty = np.isneginf(rows)
    if empty.sum() >= 2 * len(rows) / 3:
        return {int(k): -math.inf for k in np.flatnonzero(~empty)}
    best: dict[int, float] | None = None
    for law in _fits(rows):
        off = ~(np.abs(rows - law) <= np.maximum(1.5 * z * errors_of, 1e-4))
        found = {int(k): float(law[k]) for k in np.flatnonzero(off)}
        if len(found) <= len(rows) / 3 and (best is None or len(found) < len(best)):
            best = found
    return {k: law for k, law in (best or {}).items() if not abs(rows[k] - law) <= least}


def _fits(rows: np.ndarray) -> list[np.ndarray]:
    """A constant, and a power of the depth by the median of slopes (Theil 1950)."""
    finite = np.flatnonzero(np.isfinite(rows))
    if len(finite) < 2:
        return []
    fits = [np.full(len(rows), median(rows[finite]))]
    if len(finite) >= 5:
        x = np.log1p(np.arange(len(rows)))
        slopes = [(rows[j] - rows[i]) / (x[j] - x[i]) for i in finite for j in finite if j > i]
        slope = median(slopes)
        fits.append(slope * x + median(rows[finite] - slope * x[finite]))
    return fits


def saturation(load: float) -> float:
    """The standard deviation of logits in units of the critical one, of their squares' ratio.

    Above 1 softmax puts a finite share on the largest (`theory.attention.critical_std`).
    """
    return math.sqrt(max(load, 0.0))


def smallest(dtype: object) -> float:
    """The smallest number that a format holds apart from 0 as XLA computes with it."""
    info = np.finfo(np.float16) if str(dtype) == "float16" else None
    if info is not None:
        return float(info.smallest_subnormal)
    return 2.0**-1022 if str(dtype) == "float64" else 2.0**-126
