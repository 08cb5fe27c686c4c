"""What a remedy does to a model: named parameters are scaled, filled or drawn again."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.errors import BadInput


@dataclass(frozen=True)
class Change:
    """A change of every parameter whose path fits `pattern`; printed, it is the call that made it.

    Attributes:
        call: `scale`, `fill` or `redraw`, or `scale_loss`.
        pattern: as a shell's, `blocks.*.proj.weight`.
        value: the factor, the filling, or the standard deviation of what is drawn.
    """

    call: str
    pattern: str
    value: float

    def __str__(self) -> str:
        if self.call == "scale_loss":
            return f"gl.scale_loss({self.value:g})"
        return f'gl.{self.call}("{self.pattern}", {self.value:.4g})'


def scale(pattern: str, factor: float) -> Change:
    """Every parameter that fits the pattern, times a factor."""
    return Change("scale", pattern, float(factor))


def fill(pattern: str, value: float) -> Change:
    """Every entry of the parameters that fit the pattern, replaced by a number."""
    return Change("fill", pattern, float(value))


def redraw(pattern: str, std: float) -> Change:
    """The parameters that fit the pattern, drawn again from N(0, std²)."""
    return Change("redraw", pattern, float(std))


def scale_loss(factor: float) -> Change:
    """The gradient of `factor` times the loss, which an optimiser divides by it again."""
    return Change("scale_loss", "", float(factor))


Slices = dict[str, tuple[int, int | None]]


def applied(
    changes: Sequence[Change], slices: Slices, params: Sequence[Array]
) -> tuple[Array, ...]:
    """The changed parameters.

    Args:
        changes: what is done, in order.
        slices: the number of the parameter behind each name, and its slice of stacked ones.
        params: the parameters, in the order of their numbers.

    Raises:
        BadInput: for a pattern that fits no parameter.
    """
    changed = list(params)
    for change in changes:
        if change.call == "scale_loss":
            continue
        for name in fitting(change.pattern, slices):
            number, index = slices[name]
            changed[number] = _entry(change, number, index, changed[number])
    return tuple(changed)


def loss_factor(changes: Sequence[Change]) -> float:
    """What the changes multiply the loss by."""
    factor = 1.0
    for change in changes:
        factor *= change.value if change.call == "scale_loss" else 1.0
    return factor


def moved(leaf: Array, seed: int) -> Array:
    """A parameter a step of training later: each entry moved by a hundredth of the largest."""
    size = jnp.max(jnp.abs(leaf)).astype(jnp.float32)
    step = jnp.where(size > 0, size, 1) * jax.random.normal(jax.random.key(seed), leaf.shape) / 100
    return leaf + step.astype(leaf.dtype)


def fitting(pattern: str, slices: Slices) -> list[str]:
    """The names that a pattern fits; a stacked parameter and its slices are not both changed."""
    names = fnmatch.filter(slices, pattern)
    if not names:
        near = ", ".join(list(slices)[:4])
        raise BadInput(f'"{pattern}" fits no parameter; there are {near}, ... ({len(slices)}).')
    whole = {slices[name][0] for name in names if slices[name][1] is None}
    return [name for name in names if slices[name][1] is None or slices[name][0] not in whole]


def _entry(change: Change, number: int, index: int | None, leaf: Array) -> Array:
    if index is None:
        return _one(change, number, leaf)
    return leaf.at[index].set(_one(change, number + 7919 * (index + 1), leaf[index]))


def _one(change: Change, seed: int, leaf: Array) -> Array:
    if change.call == "scale":
        return (leaf * jnp.asarray(change.value, leaf.dtype)).astype(leaf.dtype)
    if change.call == "fill":
        return jnp.full_like(leaf, change.value)
    drawn = change.value * jax.random.normal(jax.random.key(seed), leaf.shape, jnp.float32)
    return drawn.astype(leaf.dtype)
