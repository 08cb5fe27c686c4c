"""Matrix products with all the digits of their dtype, on any device.

Unless told otherwise, accelerators multiply float32 matrices with fewer digits than float32 has:
recent GPUs with eleven bits of each entry, an error of 5e-4 where 6e-8 is the rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def highest(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, in which all matrix products without a precision of their own are full ones.

    Those of a layer too, whoever wrote it, and those of the derivatives of all of it.
    """

    @wraps(function)
    def at_highest(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return at_highest
