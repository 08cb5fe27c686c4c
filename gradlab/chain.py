"""The object under study: a chain of layers, its states and its exact per-layer Jacobians.

A chain knows nothing of randomness (`ensembles`) or of prediction (`theory`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Layer = Callable[[Any, Array], Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chain:
    """`depth` layers `z_k = layer(params_k, z_{k-1})` that share one function and one width.

    `params` is any pytree whose leaves have a leading axis `depth`, so that `jax.lax.scan`
    compiles one layer whatever the depth.
    """

    layer: Layer = field(metadata={"static": True})
    params: Any

    @property
    def depth(self) -> int:
        """The number of layers."""
        return int(jax.tree_util.tree_leaves(self.params)[0].shape[0])

    def __call__(self, x: Array) -> Array:
        """The output of the last layer."""
        return jax.lax.scan(lambda z, params: (self.layer(params, z), None), x, self.params)[0]


# What the functions of this laboratory accept: one chain, or a sequence of chains and of plain
# callables (closures, Equinox or Flax modules), each one layer, of any widths that fit.
Model = Chain | Sequence[Callable[[Array], Array]]


def states(chain: Chain, x: Array) -> Array:
    """The input and the output of every layer, `(depth + 1, width)`."""
    _, outputs = jax.lax.scan(
        lambda z, params: (chain.layer(params, z),) * 2, x, chain.params
    )
    return jnp.concatenate([x[None], outputs])


def jacobians(chain: Chain, x: Array) -> Array:
    """The Jacobian of every layer at the states that `x` gives, `(depth, width, width)`."""
    inputs = states(chain, x)[:-1]
    return jax.vmap(jax.jacfwd(chain.layer, argnums=1))(chain.params, inputs)
