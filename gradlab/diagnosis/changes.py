"""What a remedy does to a model: named parameters are scaled, filled or drawn again.

What is wrong with an operation, not with a number, is changed in the program: `straight_through`
and `guard`.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.errors import BadInput
from gradlab.models import ensembles


@dataclass(frozen=True)
class Change:
    """A change of every parameter whose path fits `pattern`; printed, it is the call that made it.

    Attributes:
        call: `scale`, `fill` or `redraw`; `scale_loss`; or one that `of_program` counts.
        pattern: as a shell's, `blocks.*.proj.weight`.
        value: the factor, the filling, or the standard deviation of what is drawn.
        law: of what is drawn: normal, uniform or truncated.
        part: the entries that are filled, from one to before another; None for all.
    """

    call: str
    pattern: str
    value: float
    law: str = "normal"
    part: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.call == "scale_loss":
            return f"gl.scale_loss({self.value:g})"
        if self.call in {"straight_through", *_OF_SUMS}:
            return f'gl.{self.call}("{self.pattern}")'
        law = f', "{self.law}"' if self.law != "normal" else ""
        part = f", {self.part}" if self.part else ""
        return f'gl.{self.call}("{self.pattern}", {self.value:.4g}{law}{part})'

    @property
    def words(self) -> str:
        """What is done, in words."""
        return _WORDS[self.call].format(self.pattern, f"{self.value:.4g}", self.law)

    @property
    def of_program(self) -> bool:
        """Whether an operation is changed, and no parameter."""
        return self.call in {"straight_through", "guard", "multiply", *_OF_SUMS}


_OF_SUMS = {"single_stream", "add_stream", "without_activation"}


_WORDS = {
    "scale": "multiply {0} by {1}",
    "fill": "set {0} to {1}",
    "redraw": "draw {0} again, {2}, with standard deviation {1}",
    "scale_loss": "multiply the loss by {1}, and divide its gradient by that again",
    "straight_through": "let the gradient pass {0}",
    "guard": "let no {0} read less than {1}",
    "multiply": "multiply what {0} makes of its state by {1}",
    "single_stream": "add the stream once behind {0}",
    "add_stream": "add the stream to what {0} makes of it",
    "without_activation": "take the activation behind {0} away",
}


def scale(pattern: str, factor: float) -> Change:
    """Every parameter that fits the pattern, times a factor."""
    return Change("scale", pattern, float(factor))


def fill(pattern: str, value: float, part: tuple[int, int] | None = None) -> Change:
    """Every entry of the parameters that fit the pattern, replaced by a number.

    Of `part` alone, if it is given: `(32, 64)` are entries 32 to 63 of the first axis, as the
    forget gate's are in a bias of four gates.
    """
    return Change("fill", pattern, float(value), part=part)


def redraw(pattern: str, std: float, law: str = "normal") -> Change:
    """The parameters that fit the pattern, drawn again with mean 0 and this standard deviation.

    Raises:
        BadInput: for a law other than normal, uniform or truncated (at two sigma).
    """
    if law not in _LAWS:
        raise BadInput(f'"{law}" is no law to draw from; there are {", ".join(_LAWS)}.')
    return Change("redraw", pattern, float(std), law)


def scale_loss(factor: float) -> Change:
    """The gradient of `factor` times the loss, which an optimiser divides by it again."""
    return Change("scale_loss", "", float(factor))


def straight_through(operation: str) -> Change:
    """An operation that keeps its value and lets the gradient pass: Bengio et al. 2013.

    `round@blocks.3.weight` is the first operation of this name behind that parameter.
    """
    return Change("straight_through", operation, 1.0)


def guard(operation: str, least: float = 1e-6) -> Change:
    """Every `log`, `sqrt`, `div`, ... of this name, its input kept where it is finite."""
    return Change("guard", operation, float(least))


def multiply(pattern: str, factor: float) -> Change:
    """What the layers that fit make of their state, times a factor that is no parameter.

    Their gradients are multiplied by it too, as those of a smaller weight are not.
    """
    return Change("multiply", pattern, float(factor))


def single_stream(pattern: str) -> Change:
    """The residual sums behind branches that end in such layers add their stream once."""
    return Change("single_stream", pattern, 1.0)


def add_stream(pattern: str) -> Change:
    """The state before a block is added behind the layers that fit, as behind their alike.

    They are the last of blocks without a residual sum among blocks that have one.
    """
    return Change("add_stream", pattern, 1.0)


def without_activation(pattern: str) -> Change:
    """The logits that a layer makes go to the loss as they are, with no activation between."""
    return Change("without_activation", pattern, 1.0)


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
        if change.call == "scale_loss" or change.of_program:
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
        return leaf.at[slice(*(change.part or (None,)))].set(change.value)
    drawn = change.value * _LAWS[change.law](jax.random.key(seed), leaf.shape)
    return drawn.astype(leaf.dtype)


# Each of mean 0 and variance 1.
_LAWS: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
    "normal": lambda key, shape: jax.random.normal(key, shape, jnp.float32),
    "uniform": lambda key, shape: 3**0.5 * jax.random.uniform(key, shape, jnp.float32, -1, 1),
    "truncated": lambda key, shape: (
        jax.random.truncated_normal(key, -2, 2, shape, jnp.float32)
        / ensembles.TRUNCATED_VARIANCE**0.5
    ),
}
