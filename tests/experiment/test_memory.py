"""A program that cannot run for want of memory is told before it starts."""

import jax
import jax.numpy as jnp
import pytest

from gradlab.errors import BadInput
from gradlab.experiment import memory


def product(size: int) -> jax.stages.Compiled:
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    return jax.jit(lambda a: a @ a).lower(shape).compile()


@pytest.mark.parametrize("size", [64, 1024])
def test_what_a_product_needs_is_its_matrix(size: int) -> None:
    assert memory.needed(product(size)) == 4 * size**2


def test_more_than_there_is_is_refused_and_less_is_not() -> None:
    device = jax.devices()[0]
    assert memory.free(device) > 0
    memory.check("small", product(64), device)
    with pytest.raises(BadInput, match=r"'large' needs 40 TB of memory .* are free; allowed"):
        memory.check("large", product(3_162_278), device)
