"""What libraries draw a dense layer from when nobody says: each a law of weights and of biases.

A law is of any width, in units of the fan-in n: n Var W and n Var b. Each was read in the source
of the version named; the tests hold it against the library itself where it says so.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
from jax import Array
from jax.typing import DTypeLike

from gradlab.errors import BadInput
from gradlab.models import ensembles
from gradlab.models.activations import Phi
from gradlab.models.chain import Chain


class Initialiser(NamedTuple):
    """A library's default for a dense layer.

    Attributes:
        layer: the layer that has it.
        draw: how unit weights are drawn, a name in `ensembles.DRAWS`.
        variance: n Var W.
        excess: the excess kurtosis of W.
        bias_variance: n Var b, b being uniform; 0 where biases start at 0.
        held: whether the tests hold it against the library; else it is a model of its source.
        source: where it was read.
    """

    layer: str
    draw: str
    variance: float
    excess: float
    bias_variance: float
    held: bool
    source: str


UNIFORM_EXCESS = -6 / 5
"""The excess kurtosis of a uniform number."""

DEFAULTS: dict[str, Initialiser] = {
    # lecun_normal: what the cut at two deviations takes from the variance is given back.
    "Flax": Initialiser(
        *("flax.linen.Dense, flax.nnx.Linear", "truncated", 1.0, ensembles.TRUNCATED_EXCESS, 0.0),
        held=True,
        source="flax 0.12.8, flax/linen/linear.py and flax/nnx/nn/linear.py: lecun_normal",
    ),
    # TruncatedNormal(1/√n): it is not.
    "Haiku": Initialiser(
        *("haiku.Linear", "truncated", ensembles.TRUNCATED_VARIANCE, ensembles.TRUNCATED_EXCESS),
        0.0,
        held=True,
        source="dm-haiku 0.0.17, haiku/_src/basic.py: TruncatedNormal(1/√n)",
    ),
    "Equinox": Initialiser(
        *("equinox.nn.Linear", "uniform", 1 / 3, UNIFORM_EXCESS, 1 / 3),
        held=True,
        source="equinox 0.13.8, equinox/nn/_linear.py: uniform in ±1/√n, biases too",
    ),
    # kaiming_uniform with a = √5: its bound √3 √(2/(1 + 5))/√n is 1/√n.
    "PyTorch": Initialiser(
        *("torch.nn.Linear", "uniform", 1 / 3, UNIFORM_EXCESS, 1 / 3),
        held=False,
        source="torch 2.14.1, torch/nn/modules/linear.py: kaiming_uniform_(a=√5), biases ±1/√n",
    ),
}


def affines(
    key: Array, depth: int, num_out: int, num_in: int, library: str, dtype: DTypeLike = float
) -> ensembles.Affine:
    """The parameters of `depth` layers as the library draws them, stacked.

    Raises:
        BadInput: the library is not in the table.
    """
    law = _default(library)
    key_W, key_b = jax.random.split(key)
    unit = ensembles.DRAWS[law.draw](key_W, (depth, num_out, num_in), dtype)
    edge = math.sqrt(3 * law.bias_variance / num_in)
    b = edge * jax.random.uniform(key_b, (depth, num_out), dtype, -1.0, 1.0)
    return ensembles.Affine(math.sqrt(law.variance) * unit, b)


def deviations(library: str, width: int) -> tuple[float, float]:
    """`sigma_w` and `sigma_b`: the deviations of W √width and of b.

    Raises:
        BadInput: the library is not in the table.
    """
    law = _default(library)
    return math.sqrt(law.variance), math.sqrt(law.bias_variance / width)


def chain(
    key: Array, depth: int, width: int, phi: Phi, library: str, dtype: DTypeLike = float
) -> Chain:
    """A chain of layers `phi(W z + b)` as the library draws them."""
    return Chain(ensembles.plain_layer(phi), affines(key, depth, width, width, library, dtype))


def _default(library: str) -> Initialiser:
    if library not in DEFAULTS:
        raise BadInput(f"library is {library!r}; allowed: one of {', '.join(DEFAULTS)}")
    return DEFAULTS[library]
