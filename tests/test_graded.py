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
