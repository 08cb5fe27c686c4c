"""From many draws, or many points of a line, to one number with its standard error."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

LN10 = math.log(10)

# Standard deviations of a normal that are allowed: chance alone goes beyond once in 15,800 times.
NUM_ERRORS = 4.0


class Interval(NamedTuple):
    """An estimate and its standard error, in the same unit."""

    value: Any
    error: Any


@dataclass(frozen=True)
class Sampling:
    """A cause of a tolerance: the mean of draws is off by its own error, in units of that error.

    Attributes:
        standard_error: of each entry, a number or a labelled array.
        num_draws: from how many draws the error was estimated; infinite where it is known.
        num_errors: how many standard errors of a normal are as likely as what is allowed.
        skewness: of the draws, in the shape of the error; 0 of a normal.
    """

    standard_error: Any
    num_draws: float = math.inf
    num_errors: float = NUM_ERRORS
    skewness: Any = 0.0

    @property
    def chance(self) -> float:
        """The probability, at most, that any entry is off by more than its amount, up or down."""
        return 2 * float(stats.norm.sf(self.num_errors))

    def amount(self, num_entries: int = 1, side: Any = 1.0) -> Any:
        """The deviation that is allowed each of so many entries, in the shape of the error.

        The entries share the chance evenly (Bonferroni): by the union bound, whether or not they
        share draws, one of them is beyond its amount with at most that probability.

        Args:
            num_entries: how many there are.
            side: of each entry, -1 for what is allowed it below what is expected, 1 above.
        """
        beyond = side * num_errors(self.num_draws, num_entries, self.num_errors)
        return side * _of_skewed(beyond, self.skewness, self.num_draws) * self.standard_error


def num_errors(
    num_draws: float, num_entries: int = 1, num_errors_of_normal: float = NUM_ERRORS
) -> float:
    """The standard errors, estimated from so many draws, that are as likely as `NUM_ERRORS`.

    By Student's t, of a mean of normal draws (Student 1908): 5.1 of 20 draws, 4.2 of 100. That any
    of several entries is beyond them is as likely, at most: of 20 draws 7.3 for 100 entries.
    """
    chance = stats.norm.sf(num_errors_of_normal) / num_entries
    return float(stats.t.isf(chance, num_draws - 1))


def _of_skewed(t: Any, skewness: Any, num_draws: float) -> Any:
    """The standard errors that a mean of skewed draws is off as likely as one of normal draws by t.

    Hall 1992, "On the removal of skewness by transformation", equation 3, turned round: where draws
    are skewed to the right, few large ones in a sample lower its mean and its standard error both.
    """
    a = skewness / math.sqrt(num_draws)
    is_flat = np.abs(a) < 1e-7
    a = a + is_flat
    return is_flat * t + (1 - is_flat) * 3 * (np.cbrt(1 + a * (t - a / 6)) - 1) / a


def within(amount: Any, most: float) -> Any:
    """An amount, or the standard error of a `Sampling`, that is no larger than `most`."""
    if isinstance(amount, Sampling):
        return dataclasses.replace(amount, standard_error=np.minimum(amount.standard_error, most))
    return np.minimum(amount, most)


def tail(t: Any, degrees: float) -> Any:
    """The probability that Student's t of so many degrees of freedom is above `t`."""
    return stats.t.sf(t, degrees)


def mean(draws: ArrayLike, axis: int = 0) -> Interval:
    """The mean over one axis and its standard error, which is nan of a single draw."""
    values = np.asarray(draws)
    value, num = values.mean(axis), values.shape[axis]
    error = values.std(axis, ddof=1) / math.sqrt(num) if num > 1 else np.full_like(value, np.nan)
    return Interval(value, error)


def skewness(draws: ArrayLike, axis: int = 0) -> Any:
    """How skewed draws are along an axis, nearer to 0 by what normal draws show by chance.

    The third central moment over the deviation cubed, less its standard error √(6/num_draws) of
    normal draws; 0 where that is more, or where all draws are alike.
    """
    values = np.asarray(draws, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = values - values.mean(axis, keepdims=True)
        found = np.mean(centred**3, axis) / np.mean(centred**2, axis) ** 1.5
    left = np.maximum(np.abs(found) - math.sqrt(6 / values.shape[axis]), 0.0)
    return np.where(np.isfinite(found), np.sign(found) * left, 0.0)


def slope(x: ArrayLike, y: ArrayLike) -> Interval:
    """The least-squares slope of each row of `y (..., n)` over `x (n,)`, and its standard error.

    The error is that of independent residuals of one variance; it is nan for two points, which
    leave no residual.
    """
    places, rows = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    places = places - places.mean()
    squares = np.sum(places**2)
    freedom = places.size - 2
    with np.errstate(invalid="ignore"):  # a row with an infinity has no slope: nan
        rows = rows - rows.mean(-1, keepdims=True)
        value = np.sum(places * rows, -1) / squares
        residuals = rows - value[..., None] * places
        variance = np.sum(residuals**2, -1) / freedom if freedom else np.full(value.shape, np.nan)
    return Interval(value, np.sqrt(variance / squares))


class Exponent(NamedTuple):
    """The power of x that y goes with, and the ends of its interval."""

    value: float
    low: float
    high: float


def exponent(x: ArrayLike, log_y: ArrayLike, chance: float) -> Exponent:
    """The exponent p of `y ~ x^p` from `log_y (len(x), num_draws)`, with what it may be off by.

    Its least-squares slope; by Student's t of all residuals it is beyond the interval with the
    probability `chance`. A power law of large x drifts at small ones: both sides are wider by what
    a correction of relative order 1/x does to the slope, whose size is told by what the slope
    changes by without the smallest x. It is nan where a log is not finite, and its interval has no
    ends where x has fewer than three places.
    """
    places, rows = np.asarray(x, dtype=float), np.asarray(log_y, dtype=float)
    fit = _power(places, rows)
    if len(places) < 3 or not np.isfinite(fit.value):
        return Exponent(fit.value, math.nan, math.nan)
    kept = places > places.min()
    changed = abs(fit.value - _power(places[kept], rows[kept]).value)
    of_all, of_kept = (_power(part, 1 / part[:, None]).value for part in (places, places[kept]))
    drift = changed * of_all / (of_all - of_kept)
    half = float(stats.t.isf(chance / 2, rows.size - 2)) * fit.error + drift
    return Exponent(fit.value, fit.value - half, fit.value + half)


def log_slopes(logs: Any, over: str = "width") -> Any:
    """The exponent of the width, or another axis, in what a labelled array has the logs of, by row.

    The least-squares slopes, without their errors: draws, if there are any, have each its own.
    """
    value = slope(np.log(logs[over]), logs.transpose(..., over)).value
    return logs.isel({over: 0}, drop=True).copy(data=np.asarray(value))


def _power(x: np.ndarray, rows: np.ndarray) -> Interval:
    """The slope over log x of all draws together; its error is nan where no residual is left."""
    found = slope(np.repeat(np.log(x), rows.shape[1]), rows.ravel())
    return Interval(float(found.value), float(found.error))


def label_gain(num_classes: int, batch_size: int, num_batches: int) -> Interval:
    """What who sees no input can gain, in nats, by knowing how often each label is in a batch.

    In the mean over batches: 2 batch_size times it is chi² of num_classes - 1 (Miller 1955).
    """
    degrees = (num_classes - 1) * num_batches
    return Interval(
        *(x / (2 * batch_size * num_batches) for x in (degrees, math.sqrt(2 * degrees)))
    )


def crossing(x: ArrayLike, y: ArrayLike, level: float = 0.0) -> float:
    """The first x at which y passes `level`, by straight lines between points; nan where none."""
    places, above = np.asarray(x, dtype=float), np.asarray(y, dtype=float) - level
    passes = np.flatnonzero(np.sign(above[:-1]) * np.sign(above[1:]) <= 0)
    if not passes.size:
        return math.nan
    i = int(passes[0])
    if above[i] == above[i + 1]:
        return float(places[i])
    share = above[i] / (above[i] - above[i + 1])
    return float(places[i] + share * (places[i + 1] - places[i]))
