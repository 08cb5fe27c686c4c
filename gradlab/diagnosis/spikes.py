"""The order of events before a spike: which layer left its own calm first, in which step.

A spike is held against the older half of the steps that are kept, its calm, without any model of
how norms are distributed: were all steps drawn by one law, a new one would be above the largest of
n calm ones with probability 1/(n + 1) (Rényi 1962, on records).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SPIKE = 10.0
"""A convention: from ten times the largest norm of the calm steps on one speaks of a spike."""


@dataclass(frozen=True)
class Event:
    """A layer whose norm has left its calm, and stayed above it until the spike.

    Attributes:
        step: the first step of that run.
        layer: by its path.
        factor: its norm there over the largest of its calm steps.
        at_spike: the same at the spike.
    """

    step: int
    layer: str
    factor: float
    at_spike: float


def calm_steps(history: int) -> int:
    """How many of the kept steps, the oldest, count as calm."""
    return history - history // 2


def risen(norms: Any, last_step: int, layers: Sequence[str]) -> list[Event]:
    """The layers that have risen, the first one first; of one step, the one that rose most.

    Args:
        norms: `(kept, layer)`, oldest first; the last row is that of the spike.
        last_step: the number of that step.
        layers: their names.
    """
    rows = np.asarray(norms, float)
    calm = rows[: calm_steps(len(rows))]
    # A norm that is not finite is no calm one, and above all that are.
    most = np.max(np.where(np.isfinite(calm), calm, -np.inf), axis=0, initial=-np.inf)
    is_above = ~(rows <= most)
    length = np.argmin(is_above[::-1], axis=0)
    length = np.where(is_above.all(axis=0), len(rows), length)
    found = [
        Event(
            step=last_step - int(n) + 1,
            layer=layers[k],
            factor=_over(rows[len(rows) - n, k], most[k]),
            at_spike=_over(rows[-1, k], most[k]),
        )
        for k, n in enumerate(length)
        if n
    ]
    return sorted(found, key=lambda event: (event.step, -event.factor))


def _over(norm: float, most: float) -> float:
    """A ratio; infinite where a norm is not finite, or nothing calm is above 0."""
    if not np.isfinite(norm) or most <= 0:
        return float("inf")
    return float(norm / most)
