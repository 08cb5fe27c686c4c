"""The gradient of an embedding, row by row: which rows a batch reads, and which one has most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gradlab.diagnosis.facts import Facts


@dataclass(frozen=True)
class Embedding:
    """The rows of a parameter that is looked up.

    A row that the batch does not read has no gradient, and nothing is wrong with it.

    Attributes:
        name: of the parameter.
        num_rows, num_learning: all rows, and those with a gradient on this batch.
        largest: the row with the largest gradient; its share is `share` of the squared norm.
        log_norms: `(num_rows,)`, the log of the norm of each row's gradient, -inf without one.
    """

    name: str
    num_rows: int
    num_learning: int
    largest: int
    share: float
    log_norms: np.ndarray

    def __str__(self) -> str:
        if not self.num_learning:
            return f"{self.name}: none of {self.num_rows} rows has a gradient"
        return (
            f"{self.name}: {self.num_learning} of {self.num_rows} rows have a gradient, "
            f"row {self.largest} has {self.share:.0%} of its squared norm"
        )


def embeddings(facts: Facts) -> list[Embedding]:
    """Those of a model, in the order of its parameters."""
    rows = facts.measured.rows
    return [_of(facts.anatomy.names[number], logs) for number, logs in sorted(rows.items())]


def _of(name: str, logs: np.ndarray) -> Embedding:
    logs = np.asarray(logs, float)
    peak = int(np.argmax(np.where(np.isnan(logs), -np.inf, logs)))
    squares = np.exp(2 * (logs - logs[peak])) if logs[peak] > -math.inf else np.zeros_like(logs)
    num, total = int(np.sum(logs > -math.inf)), float(squares.sum())
    return Embedding(name, len(logs), num, peak, 1 / total if total > 0 else math.nan, logs)
