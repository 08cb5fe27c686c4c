"""Planted faults: each must break a claim, or the claim proves nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gradlab
from gradlab.experiment.loading import Experiment, Fault


def fault(target: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Fault:
    """A planted fault: while it is active, `target` is replaced by `change(target)`.

    `target` is a function of the measuring library (`"chain.jacobians"`) or, without a dot, of the
    experiment itself (`"compute"`). Predictions live in `theory`, which a fault leaves alone.

    Raises:
        ValueError: the target is a prediction: a fault there would move the yardstick.
    """
    room, _, name = target.rpartition(".")
    if room.startswith("theory"):
        raise ValueError(f"fault target '{target}' is a prediction; allowed: a measuring function")

    @contextlib.contextmanager
    def planted(experiment: Experiment) -> Iterator[None]:
        import jax

        owner = getattr(gradlab, room) if room else experiment.module
        honest = getattr(owner, name)
        jax.clear_caches()  # compiled programs hold the honest function
        setattr(owner, name, change(honest))
        try:
            yield
        finally:
            setattr(owner, name, honest)
            jax.clear_caches()

    return planted
