"""Planted faults: each must break a claim, or the claim proves nothing.

A fault names a function of a measuring room (`"ensembles.gaussian"`, `"jacobians.log_norms"`) or,
without a dot, of the experiment itself (`"compute"`), and says what is wrong with it while the
fault is active. Predictions live in `theory`, which no fault may touch: that would move the
yardstick.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache, reduce
from typing import Any

import gradlab
from gradlab.experiment.loading import Experiment, Fault

Function = Callable[..., Any]


def change(target: str, made: Callable[[Function], Function]) -> Fault:
    """The fault that puts `made(honest function)` in the place of `target`.

    Raises:
        ValueError: the target is a prediction.
    """
    room, _, name = target.rpartition(".")
    if room.split(".")[0] == "theory":
        raise ValueError(f"fault target '{target}' is a prediction; allowed: a measuring function")

    @contextlib.contextmanager
    def planted(experiment: Experiment) -> Iterator[None]:
        import jax

        # A room that was first imported now would take the wrong function by name, and keep it.
        for one in _rooms():
            importlib.import_module(one)
        owner = reduce(getattr, room.split("."), gradlab) if room else experiment.module
        honest = getattr(owner, name)
        jax.clear_caches()  # compiled programs hold the honest function
        setattr(owner, name, made(honest))
        try:
            yield
        finally:
            setattr(owner, name, honest)
            jax.clear_caches()

    return planted


@cache
def _rooms() -> tuple[str, ...]:
    """All rooms that compute, by their names."""
    wings = (
        f"{gradlab.__name__}.{wing}" for wing in ("arithmetic", "models", "theory", "measuring")
    )
    return tuple(
        room.name
        for wing in wings
        for room in pkgutil.walk_packages(importlib.import_module(wing).__path__, f"{wing}.")
    )


def replace(target: str, other: Function) -> Fault:
    """The fault that calls `other` with the arguments of `target`."""
    return change(target, lambda _: other)


def argument(target: str, **changes: Callable[[Any], Any]) -> Fault:
    """The fault that gives `target` other arguments: `argument("layer", w=lambda w: 0.99 * w)`.

    A call that leaves out an argument to be changed is changed by its default.

    Raises:
        TypeError: on the first call, if `target` has no such argument.
    """
    return change(target, given(**changes))


def given(**changes: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """From a function to the same one given other arguments: `given(w=lambda w: 0.99 * w)`."""

    def made(honest: Function) -> Function:
        signature = inspect.signature(honest)

        def wrong(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind(*args, **kwargs)
            call.apply_defaults()
            for name, changed in changes.items():
                if name not in call.arguments:
                    raise TypeError(
                        f"a fault changes the argument '{name}'; allowed: "
                        + ", ".join(call.arguments)
                    )
                call.arguments[name] = changed(call.arguments[name])
            return honest(*call.args, **call.kwargs)

        return wrong

    return made


def result(target: str, changed: Callable[[Any], Any]) -> Fault:
    """The fault that returns `changed(what target returns)`."""
    return change(target, then(changed))


def then(changed: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """From a function to the one that returns `changed(what it returns)`."""
    return lambda honest: lambda *args, **kwargs: changed(honest(*args, **kwargs))


def scale(target: str, factor: float) -> Fault:
    """The fault that multiplies what `target` returns, every array of it, by `factor`."""

    def scaled(value: Any) -> Any:
        import jax

        return jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), value)

    return result(target, scaled)


def no_identity() -> Fault:
    """The fault that leaves of every residual chain its branch alone, of factor 1."""
    return replace("ensembles.residual", lambda *args, **_: gradlab.ensembles.gaussian(*args[:6]))
