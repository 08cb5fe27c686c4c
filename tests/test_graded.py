"""One layer after another taken into `L diag(d) U`, and the gaps between its directions."""

import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring.product_svd import graded
from gradlab.models import chain


def scales(exponents, alive=True):
    mantissa = jnp.where(jnp.asarray(alive), jnp.ones(len(exponents)), 0)
    return Scaled(mantissa, jnp.asarray(exponents, jnp.int32))


def test_a_direction_that_fell_behind_and_catches_up_is_seen_as_far_as_it_does():
    gaps = graded.no_gaps(jnp.zeros(2))
    for exponents in ([0, -40], [0, -30], [0, 5], [0, 0]):
        gaps = graded.next_gaps(gaps, scales(exponents), jnp.ones(2))
    # From 40 behind to level; what it is ahead afterwards is no catching up.
    np.testing.assert_array_equal(gaps.caught_up, [40, 5])


def test_nothing_catches_up_on_a_direction_that_is_gone():
    gaps = graded.no_gaps(jnp.zeros(3))
    for k in range(5):
        d = scales([10 * k, -10 * k, -3], alive=[True, True, k == 0])
        gaps = graded.next_gaps(gaps, d, jnp.array([1, 1, 1.0 * (k == 0)]))
    np.testing.assert_array_equal(gaps.caught_up, [0, 0, 0])


def test_a_column_that_is_no_direction_catches_up_as_far_as_it_has_grown():
    gaps, exponent = graded.no_gaps(jnp.zeros(2)), 0
    for growth in (-9, 30, -2):
        exponent += growth
        gaps = graded.next_gaps(gaps, scales([0, exponent], alive=[True, False]), jnp.ones(2))
    np.testing.assert_array_equal(gaps.caught_up, [30, 0])
    # Without a pivot it holds nothing, and begins anew.
    for growth, pivot in ((-50, 0.0), (20, 1.0), (0, 1.0)):
        exponent += growth
        d = scales([0, exponent], alive=[True, False])
        gaps = graded.next_gaps(gaps, d, jnp.array([1, pivot]))
    np.testing.assert_array_equal(gaps.caught_up, [30, 0])


def test_a_column_that_is_no_direction_grows_by_its_pivots():
    """Of a layer with two units dead, two columns are left; the next layer brings them back."""
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(2, 4, 4)) * np.array([[1, 1, 0, 0], [1, 1, 1, 1]])[:, :, None]
    factors = graded.start(jnp.zeros(4)).factors
    for J in layers:
        before = factors
        ahead = graded.look_ahead(chain.apply_linear, jnp.asarray(J), jnp.zeros(4), before)
        factors = graded.take(before, ahead)
    np.testing.assert_array_equal(factors.d.mantissa != 0, [1, 1, 0, 0])
    pivots = np.abs(np.linalg.qr(layers[1] @ before.L)[1].diagonal())
    assert abs(np.prod(pivots) / np.abs(np.prod(np.diagonal(ahead.R))) - 1) < 1e-13
    grown = factors.d.exponent - before.d.exponent
    np.testing.assert_array_equal(grown[2:], np.floor(np.log2(np.abs(np.diagonal(ahead.R))))[2:])


def test_looking_ahead_tells_a_layer_that_is_nearly_singular_from_one_that_is_not():
    U, V = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 4, 4)))[0]
    for smallest, is_quick in ((1e-1, True), (1e-8, False), (0, False)):
        J = jnp.asarray((U * [1, 1, 1, smallest]) @ V)
        factors = graded.start(jnp.zeros(4)).factors
        ahead = graded.look_ahead(chain.apply_linear, J, jnp.zeros(4), factors)
        assert bool(ahead.loss <= graded.LAYER_LOSS) == is_quick


@pytest.mark.parametrize("grade", [graded.REFINED, graded.CAREFUL])
def test_what_strays_is_carried_on_as_the_columns_themselves_are(grade):
    """`J L_0 (I + F) = L (I + X) R`; two directions of four, and four columns."""
    rng = np.random.default_rng(0)
    first, J = rng.normal(size=(4, 2)), rng.normal(size=(4, 4))
    state = jnp.zeros(2), graded.start(jnp.zeros(2)), graded.no_gaps(jnp.zeros(2))

    def advance(J, x, exactly, gaps):
        return graded.advance_exactly(
            chain.apply_linear, jnp.asarray(J), x, exactly, gaps, jnp.asarray(grade), 2, True
        )

    x, taken = advance(first, *state)
    assert taken.exactly.factors.L.shape == (4, 4)
    np.testing.assert_array_equal(taken.exactly.factors.d.mantissa != 0, [1, 1, 0, 0])
    # What has strayed by rounding, and is in no direction.
    assert 0 < np.abs(taken.exactly.stray[2:, :2]).max() < 1e-16
    assert not taken.exactly.stray[:2].any()
    assert not taken.exactly.stray[:, 2:].any()

    F = np.zeros((4, 4))
    F[2:, :2] = 1e-6 * rng.normal(size=(2, 2))
    exactly = taken.exactly._replace(stray=jnp.asarray(F))
    L_0 = np.asarray(taken.exactly.factors.L)
    _, taken = advance(J, x, exactly, taken.gaps)
    step = taken.step
    np.testing.assert_allclose(J @ L_0[:, step.order], step.L @ step.R * scale(J, step), atol=1e-14)
    R = np.asarray(step.R)
    X = R @ F[step.order][:, step.order] @ np.linalg.inv(R)
    # Rounding of numbers of 1e-6, and of what strays anew, in half as many digits more.
    np.testing.assert_allclose(taken.exactly.stray[2:, :2], X[2:, :2], rtol=0, atol=1e-17)
    assert abs(taken.strayed - np.abs(X[:, :2]).max()) < 1e-17


def scale(J, step):
    """The power of two by which a layer was divided."""
    return np.linalg.norm(J) / np.linalg.norm(step.J)
