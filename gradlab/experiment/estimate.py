"""From many draws, or many points of a line, to one number with its standard error."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

LN10 = math.log(10)


class Interval(NamedTuple):
    """An estimate and its standard error, in the same unit."""

    value: Any
    error: Any


def mean(draws: ArrayLike, axis: int = 0) -> Interval:
    """The mean over one axis and its standard error."""
    values = np.asarray(draws)
    error = values.std(axis, ddof=1) / math.sqrt(values.shape[axis])
    return Interval(values.mean(axis), error)


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
