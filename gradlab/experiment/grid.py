"""What an experiment repeats over: formats, depths, draws.

jax is imported at first use, as in an experiment, so that a config is checked without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from gradlab.errors import BadInput
from gradlab.lazy import jax, jnp

T = TypeVar("T")


def formats(dtype: Sequence[str]) -> list[str]:
    """Those of the formats that jax holds here: without 64-bit mode there is no float64.

    Raises:
        BadInput: none of them is held.
    """
    held = [name for name in dtype if jax.dtypes.canonicalize_dtype(name).name == name]
    if not held:
        raise BadInput(
            f"dtype is {list(dtype)} where precision=float32 holds no float64; "
            "allowed: another format, or precision=float64"
        )
    return held


def depths(deepest: int, count: int, every: int = 0) -> tuple[int, ...]:
    """At most `count` depths evenly spread up to `deepest`, with each one from 1 to `every`."""
    spread = (max(1, round(deepest * i / count)) for i in range(1, count + 1))
    return tuple(sorted({*spread, *range(1, min(deepest, every) + 1)}))


def over_draws(one: Callable[[Any], T], key: Any, num_draws: int) -> T:
    """What `one(key)` gives for each of `num_draws` keys, stacked along a leading axis.

    One after another (`jax.lax.map`), so that memory does not grow with the number of draws.
    """
    stacked: T = jax.lax.map(one, jax.random.split(key, num_draws))
    return stacked


def first(happens: Any) -> Any:
    """The first place along the last axis, from 1, at which something happens; inf where never."""
    return jnp.where(jnp.any(happens, -1), 1.0 + jnp.argmax(happens, -1), jnp.inf)
