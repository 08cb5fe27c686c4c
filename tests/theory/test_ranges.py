"""Where products of Gaussian matrices leave a format's range, against simulation."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradlab.theory import ranges, scalar


def test_the_mean_end_is_where_the_largest_exponent_has_used_a_range_up() -> None:
    # Width 1: log|N(0, 1)| has the mean -(log 2 + gamma)/2 (Abramowitz and Stegun 6.3.3).
    fall = (math.log(2) + 0.5772156649015329) / 2
    shrinks, grows = (float(ranges.mean_end(s, 1, "float32")) for s in (1.0, 8.0))

    assert shrinks == pytest.approx(126 * math.log(2) / fall, rel=1e-14)
    assert grows == pytest.approx(128 * math.log(2) / (math.log(8) - fall), rel=1e-7)


@pytest.mark.parametrize("sigma_w", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("width", [1, 4])
def test_a_norm_leaves_the_range_as_often_where_it_should(width: int, sigma_w: float) -> None:
    num, depth, chance = 1000, 400, 0.2
    gains = sigma_w / math.sqrt(width)
    rng = np.random.default_rng(3)
    P, log = np.broadcast_to(np.eye(width), (num, width, width)), np.zeros(num)
    format_ = scalar.FORMATS["float16"]
    # No entry is above the norm, which is below width times the largest; a factor of two is spared.
    top = math.log(2) * (format_.log2_overflow + 1) + math.log(width)
    bottom = math.log(2) * (format_.log2_smallest - 1)
    left = np.full(num, np.inf)
    for layer in range(1, depth + 1):
        P = gains * rng.standard_normal((num, width, width)) @ P
        size = np.linalg.norm(P, axis=(1, 2), keepdims=True)
        P, log = P / size, log + np.log(size[:, 0, 0])
        left = np.where(np.isinf(left) & ((log <= bottom) | (log >= top)), layer, left)

    first, last = (float(end) for end in ranges.sure_end(sigma_w, width, "float16", chance))
    outside = int(np.sum((left < first) | (left > last)))

    assert stats.binom.sf(outside - 1, num, chance) > 1e-4
    # It is no idle statement: eight of ten runs take more than an eighth of what it allows.
    early, late = np.quantile(left, [0.1, 0.9])
    if np.isfinite(last):
        assert late - early > (last - first) / 8


def test_a_smaller_chance_allows_more() -> None:
    for name in ("float16", "float64"):
        first, last = ranges.sure_end(jnp.asarray([0.5, 1.0, 3.0]), 8, name, 1e-2)
        wider = ranges.sure_end(jnp.asarray([0.5, 1.0, 3.0]), 8, name, 1e-6)
        assert (first < last).all()
        assert (wider[0] <= first).all()
        assert (wider[1] >= last).all()


def test_the_ends_of_a_path_that_is_known() -> None:
    # A float16 is at most 65504 and at least 2^-24, subnormal below 2^-14; no weight is above 1.
    layer = np.arange(1, 61.0)
    row = jnp.zeros(60)
    maybe, surely = ranges.outside(jnp.asarray(math.log(2) * layer), row, 1, "float16", 1e-4)
    assert int(np.argmax(maybe)) + 1 == 17  # the factor before it was at 2^16
    assert int(np.argmax(surely)) + 1 == 17

    maybe, surely = ranges.outside(jnp.asarray(-math.log(2) * layer), row, 1, "float16", 1e-4)
    assert int(np.argmax(surely)) + 1 == 25
    assert int(np.argmax(maybe)) + 1 < 14
