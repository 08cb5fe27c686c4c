"""Parametrisations of a network by its width: by which power of it one step changes each layer.

A network of an input of fixed size, layers n wide and a readout, of weights that are drawn with the
standard deviations 1 (first, over √fan_in), n^(-1/2) (hidden) and n^-readout, and of learning rates
that go as n^-rate. Exponents are those of n, for one step from the start, to first order in the
rate; Yang and Hu 2021 (arXiv:2011.14522) for gradient steps, Yang and Littwin 2023
(arXiv:2308.01814) for steps by the sign (Adam's first). That of all weights together, and the
spectral step's, are derived here and confirmed by simulation in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

T = TypeVar("T")

STEP_RULES = ("gradient", "sign", "spectral")


class Parametrisation(NamedTuple):
    """Exponents: of 1/n in the readout's standard deviation, and in the layers' learning rates."""

    readout: float
    first_rate: float
    hidden_rate: float
    last_rate: float


_SCALINGS = {
    "standard": dict.fromkeys(STEP_RULES, Parametrisation(0.5, 0.0, 0.0, 0.0)),
    "maximal update": {
        "gradient": Parametrisation(1.0, -1.0, 0.0, 1.0),
        "sign": Parametrisation(1.0, 0.0, 1.0, 1.0),
        "spectral": Parametrisation(1.0, 0.0, 0.0, 0.5),
    },
}


def scaling(way: str, rule: str) -> Parametrisation:
    """The exponents of the `way` "standard", one rate for all, or of the "maximal update".

    In the latter every layer's change is of order 1 at any width: Yang, Hu et al. 2022
    (arXiv:2203.03466), table 3 (not read; from a second source), for steps by the `rule` "gradient"
    or "sign"; derived for "spectral", a step of singular values √max(1, out/in).
    """
    return _entry(_entry(_SCALINGS, way, "way"), rule, "rule")


def factors(way: str, rule: str, wider: float) -> tuple[float, float, float, float]:
    """By what a network `wider` times as wide differs: the readout's scale, then the three rates.

    The scale is that over one of standard deviation 1/√n, which the standard way has at any width.
    """
    p = scaling(way, rule)
    rates = (wider**-power for power in (p.first_rate, p.hidden_rate, p.last_rate))
    return wider ** (0.5 - p.readout), *rates


def change_exponents(rule: str, p: Parametrisation, moved: int) -> tuple[float, float, float]:
    """The exponents of n in the changes of first layer, hidden layer and logits, one layer moved.

    `moved` is 0, 1 or 2 for the first layer's weights, the hidden or the readout's; what does not
    change has -inf. The gradient at a hidden unit goes as n^-readout. A step of W changes h = W x
    by the gradient at h times |x|² ("gradient"), by sum |x_i| ("sign"), or by |x| times the step's
    operator norm ("spectral"). What has changed below arrives at the next layer as it is, and at
    the logits n^(1 - readout) times as large, since a step is aligned with the readout.
    """
    of_rule = {
        "gradient": (-p.first_rate - p.readout, 1 - p.hidden_rate - p.readout, 1 - p.last_rate),
        "sign": (-p.first_rate, 1 - p.hidden_rate, 1 - p.last_rate),
        "spectral": (-p.first_rate, -p.hidden_rate, 0.5 - p.last_rate),
    }
    own = _entry(of_rule, rule, "rule")[moved]
    never = float("-inf")
    below = own + 1 - p.readout
    return ((own, own, below), (never, own, below), (never, never, own))[moved]


def total_exponents(rule: str, p: Parametrisation) -> tuple[float, ...]:
    """The exponents when all layers move: of the largest part, at large n."""
    parts = [change_exponents(rule, p, moved) for moved in range(3)]
    return tuple(max(column) for column in zip(*parts, strict=True))


def _entry(table: Mapping[str, T], name: str, word: str) -> T:
    if name not in table:
        raise ValueError(f"{word} is one of {', '.join(table)}, not {name!r}.")
    return table[name]
