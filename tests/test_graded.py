"""One layer after another taken into `L diag(d) U`, and the gaps between its directions."""

import jax.numpy as jnp
import numpy as np

from gradlab import chain, graded
from gradlab.scaled import Scaled


def scales(exponents, alive=True):
    mantissa = jnp.where(jnp.asarray(alive), jnp.ones(len(exponents)), 0)
    return Scaled(mantissa, jnp.asarray(exponents, jnp.int32))


def test_a_direction_that_fell_behind_and_catches_up_is_seen_as_far_as_it_does():
    gaps = graded.no_gaps(jnp.zeros(2))
    for exponents in ([0, -40], [0, -30], [0, 5], [0, 0]):
        gaps = graded.next_gaps(gaps, scales(exponents))
    # From 40 behind to level; what it is ahead afterwards is no catching up.
    np.testing.assert_array_equal(gaps.caught_up, [40, 5])


def test_nothing_catches_up_on_a_direction_that_is_gone_nor_does_it():
    gaps = graded.no_gaps(jnp.zeros(3))
    for k in range(5):
        d = scales([10 * k, -10 * k, -3], alive=[True, True, k == 0])
        gaps = graded.next_gaps(gaps, d)
    np.testing.assert_array_equal(gaps.caught_up, [0, 0, 0])


def test_looking_ahead_tells_a_layer_that_is_nearly_singular_from_one_that_is_not():
    U, V = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 4, 4)))[0]
    for smallest, is_quick in ((1e-1, True), (1e-8, False), (0, False)):
        J = jnp.asarray((U * [1, 1, 1, smallest]) @ V)
        factors = graded.start(jnp.zeros(4))
        ahead = graded.look_ahead(chain.apply_linear, J, jnp.zeros(4), factors)
        assert bool(ahead.loss <= graded.LAYER_LOSS) == is_quick


def test_what_strays_is_carried_on_as_the_columns_themselves_are():
    """`J (L_0 + F) = (L (I + X) + F') R`, with F' beside the columns, which X is not."""
    rng = np.random.default_rng(0)
    before = graded.start(jnp.zeros(2))
    first, J = rng.normal(size=(4, 2)), rng.normal(size=(4, 4))
    grade = jnp.asarray(graded.CAREFUL, jnp.int32)
    exactly = graded.Exactly(before, *(jnp.zeros((2, 2)),) * 2)
    gaps, x = graded.no_gaps(jnp.zeros(2)), jnp.zeros(2)
    x, taken = graded.advance_exactly(
        chain.apply_linear, jnp.asarray(first), x, exactly, gaps, grade, True
    )
    stray = 1e-6 * rng.normal(size=(4, 2))
    exactly = taken.exactly._replace(stray=jnp.asarray(stray))
    _, taken = graded.advance_exactly(
        chain.apply_linear, jnp.asarray(J), x, exactly, taken.gaps, grade, True
    )
    step = taken.step
    change = np.asarray(step.J) @ stray[:, step.order] @ np.linalg.inv(step.R)
    pivots = np.abs(np.asarray(step.L)).argmax(axis=0)  # 1, and nothing else is as large
    X = np.linalg.solve(np.asarray(step.L)[pivots], change[pivots])
    # Rounding of numbers of 1e-6, and of what strays anew, in twice the digits.
    np.testing.assert_allclose(step.returned, np.abs(X), rtol=1e-9)
    np.testing.assert_allclose(step.stray, change - step.L @ X, rtol=0, atol=1e-15)
    assert taken.strayed == max(np.abs(X).max(), np.abs(step.stray).max())
