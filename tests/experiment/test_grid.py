"""What an experiment repeats over: each helper against what it is short for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.experiment import grid


def test_formats_that_are_not_held_here_are_left_out() -> None:
    names = ["bfloat16", "float32", "float64"]
    assert grid.formats(names) == names
    with jax.enable_x64(False):
        assert grid.formats(names) == names[:2]
        with pytest.raises(BadInput, match=r"dtype is \['float64'\].*allowed: another format"):
            grid.formats(["float64"])


def test_depths_are_evenly_spread_after_the_first_ones() -> None:
    assert grid.depths(100, 4) == (25, 50, 75, 100)
    assert grid.depths(100, 4, every=3) == (1, 2, 3, 25, 50, 75, 100)
    assert grid.depths(2, 10, every=5) == (1, 2)


def test_draws_are_those_of_the_split_keys_in_their_order() -> None:
    key = jax.random.key(3)
    seen = grid.over_draws(lambda key: {"z": jax.random.normal(key, (2,))}, key, 5)
    each = [jax.random.normal(one, (2,)) for one in jax.random.split(key, 5)]
    np.testing.assert_array_equal(seen["z"], jnp.stack(each))


def test_the_first_place_counts_from_1_and_is_infinite_where_there_is_none() -> None:
    happens = jnp.array([[True, False, True], [False, False, True], [False, False, False]])
    np.testing.assert_array_equal(grid.first(happens), [1, 3, math.inf])
