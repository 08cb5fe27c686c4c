"""Loops that XLA compiles once: over the layers of a segment, and one of at most one turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.models import chain
from gradlab.models.chain import Chain


def scan(step: Any, carry: Any, segment: Chain, reverse: bool = False) -> Any:
    """`jax.lax.scan` over the layers of a segment; one layer alone may change the carry's shape."""
    if segment.depth == 1:
        carry, seen = step(carry, chain.params_at(segment.params, 0))
        return carry, jax.tree.map(lambda leaf: leaf[None], seen)
    return jax.lax.scan(step, carry, segment.params, reverse=reverse)


def unless(done: Array, value: Any, otherwise: Callable[[Any], Any]) -> Any:
    """`value` if `done`, else `otherwise(value)`; it has no derivative backwards.

    A loop of at most one turn: a conditional would copy the value, and under vmap always do both.
    """
    state = done, value
    state = jax.lax.while_loop(
        lambda state: ~state[0], lambda state: (jnp.ones_like(done), otherwise(state[1])), state
    )
    return state[1]
