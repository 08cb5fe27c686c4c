"""Rank: which singular values are lost, which are 0, and that all others stay right."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.arithmetic import scaled
from gradlab.models import chain
from tests import arbitrary
from tests.measuring.product_svd.drawn import SINGULAR_VALUES, WIDTH, gaussian, rounding, spectrum


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("width", [16, 32])
def test_the_rank_that_centring_takes_is_flagged_in_every_draw(width: int, dtype: Any) -> None:
    """Columns with their mean taken off, each entry of which is rounded more than once."""
    rng = np.random.default_rng(width)
    for _ in range(40):
        matrices = jnp.asarray(rng.normal(size=(6, width, width)) / width**0.5, dtype)
        layer = int(rng.integers(6))
        matrices = matrices.at[layer].add(-matrices[layer].mean(axis=0))
        _, result = spectrum(matrices, dtype, (6,))
        np.testing.assert_array_equal(result.lost[0], np.arange(width) == width - 1)


def test_a_direction_that_is_lost_leaves_the_others_right() -> None:
    """Triangles in float32, and the rank that centring takes from one layer half way."""
    rng = np.random.default_rng(1)
    matrices = 3 * np.triu(rng.normal(size=(30, 16, 16))) / 4
    matrices[15] -= matrices[15].mean(axis=0)
    matrices, result = spectrum(matrices, jnp.float32, (30,))
    np.testing.assert_array_equal(result.lost[0], np.arange(16) == 15)
    exact = arbitrary.log_singular_values(matrices)
    # Some ulps of 60 nats. Without more digits for all layers, 0.07.
    assert np.abs(result.log[0] - exact)[:-1].max() < 1e-4


@pytest.mark.parametrize("seed", [533, 537, 555])
def test_a_direction_that_is_gone_takes_no_other_along(seed: int) -> None:
    """Sparse layers, singular by their zeros, which leave one direction of three."""
    rng = np.random.default_rng(seed)
    matrices = rng.normal(size=(20, 3, 3)) * (rng.uniform(size=(20, 3, 3)) < 0.6)
    _, result = spectrum(matrices, jnp.float64, (20,))
    norm = np.log(np.linalg.norm(np.linalg.multi_dot(matrices[::-1])))
    # Rounding of twenty layers; of the other directions, at most what is far below remains.
    assert abs(result.log[0, 0] - norm) < 1e-12
    assert not (result.log[0, 1:] > norm - 30).any()


@pytest.mark.parametrize(
    ("seed", "dtype"),
    [
        *((seed, jnp.float64) for seed in (2034, 2131, 2343, 2381, 900358)),
        (905940, jnp.float32),
    ],
)
def test_no_direction_is_made_of_the_rounding_of_rows_in_proportion(seed: int, dtype: Any) -> None:
    """Sparse layers, one of which leaves rows in proportion, of which the next makes one."""
    rng = np.random.default_rng(seed)
    matrices = rng.normal(size=(20, 3, 3)) * (rng.uniform(size=(20, 3, 3)) < 0.6)
    _, result = spectrum(matrices, dtype, (20,))
    # By exact fractions the rank is 1.
    np.testing.assert_array_equal(np.isfinite(result.log[0]), [True, False, False])


def test_the_rank_that_layers_lose_together_is_flagged() -> None:
    """Integers: layer 4 has rank 2, and leaves what layer 10, of rank 2 too, makes one of.

    No entry of layer 10 is rounded, nor would it matter: the directions before it are.
    """
    matrices = np.random.default_rng(100).integers(-2, 3, size=(20, 3, 3)).astype(float)
    ranks = [np.linalg.matrix_rank(matrices[k]) for k in (3, 9)]
    assert ranks == [2, 2]
    product = np.linalg.multi_dot(matrices[9::-1])  # of whole numbers below 2^53: exact
    assert np.linalg.matrix_rank(product) == 1
    _, result = spectrum(matrices, jnp.float64, (9, 10, 20))
    np.testing.assert_array_equal(np.isfinite(result.log), [[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(result.lost, [[0, 0, 0], [0, 1, 0], [0, 1, 0]])


def test_a_dead_unit_gives_exact_zeros_and_is_not_called_lost() -> None:
    matrices = gaussian(np.random.default_rng(3))
    matrices[10, 2] = 0
    matrices[25, 4] = 0
    matrices, result = spectrum(matrices, jnp.float64)
    exact = arbitrary.log_singular_values(matrices, bits=2000)
    assert not result.lost.any()
    assert result.log[0, -1] == -np.inf
    np.testing.assert_allclose(
        result.log[0, :-1][exact[:-1] > -500], exact[exact > -500][:4], atol=1e-11
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([jnp.float32, jnp.float64]))
def test_a_chain_whose_units_die_at_random_keeps_as_many_directions_as_the_fewest_left(
    seed: int, dtype: Any
) -> None:
    """Three of eight units in every layer at most, others each time, as relu leaves them."""
    rng = np.random.default_rng(seed)
    is_alive = rng.permuted(np.tile(np.arange(8) < 5, (30, 1)), axis=1)
    is_alive[:-1] |= rng.uniform(size=(29, 8)) < 0.2
    matrices = rng.normal(size=(30, 8, 8)) * is_alive[:, :, None]
    matrices, result = spectrum(matrices, dtype, (30,))
    assert not result.lost.any()
    np.testing.assert_array_equal(np.isfinite(result.log[0]), np.arange(8) < 5)
    exact = arbitrary.log_singular_values([*matrices[:-1], matrices[-1, is_alive[-1]]])
    # Roundings of 30 layers, the worst of conditions of a thousand, and ulps of some ten nats.
    assert np.abs(result.log[0, :5] - exact).max() < 1e4 * scaled.eps(dtype)


REPEATS = {
    "two equal rows": lambda J: np.vstack([J[:4], J[:1]]),
    "a row that is the sum of two": lambda J: np.vstack([J[:4], J[0] + J[1]]),
    "two equal columns": lambda J: np.hstack([J[:, :4], J[:, :1]]),
    "rank one": lambda J: np.outer(J[0], J[1]),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", REPEATS)
def test_a_rank_lost_without_a_dead_unit_is_flagged(name: str, dtype: Any) -> None:
    matrices = np.array(gaussian(np.random.default_rng(4)))
    matrices[20] = REPEATS[name](matrices[20])
    rank = np.linalg.matrix_rank(matrices[20])
    matrices, result = spectrum(matrices, dtype)
    np.testing.assert_array_equal(result.lost[0], np.arange(WIDTH) >= rank)
    np.testing.assert_array_equal(np.isnan(result.log[0]), result.lost[0])
    exact = arbitrary.log_singular_values(matrices, bits=4000)
    known = np.abs(result.log[0] - exact)[:rank]
    assert (known <= rounding(np.delete(matrices, 20, 0), dtype, exact[:rank])).all()


def test_a_chain_that_has_been_narrow_has_that_many_singular_values() -> None:
    rng = np.random.default_rng(5)
    sizes = [(6, 5), (3, 6), (7, 3), (5, 7)]
    matrices = [jnp.asarray(rng.normal(size=size)) for size in sizes]
    result = SINGULAR_VALUES(chain.linear(matrices), jnp.zeros(5), (1, 4))
    assert np.isfinite(result.log[0]).all()
    np.testing.assert_array_equal(np.isneginf(result.log[1]), np.arange(5) >= 3)
    exact = arbitrary.log_singular_values(matrices)
    np.testing.assert_allclose(result.log[1, :3], exact[:3], rtol=0, atol=1e-13)  # four layers
