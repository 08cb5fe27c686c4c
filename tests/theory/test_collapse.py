"""How alike tokens become: against the published update, and of small differences."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.theory import attention, collapse


def by_hand(c: float, skip: float, own: float) -> float:
    """A block with rows that share nothing: Giorlandino and Goldt's code, weights of variance 1/d.

    The arc cosine of order 1 (Cho and Saul 2009) is relu's kernel.
    """
    c = c * (1 + skip**2) / (c + (1 - c) * own + skip**2)
    kernel = (math.sqrt(1 - c**2) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    return (kernel + skip**2 * c) / (0.5 + skip**2)


@pytest.mark.parametrize(("ratio", "skip"), [(0.5, 1.0), (2.0, 0.5), (3.0, 2.0)])
def test_the_limit_of_many_tokens_is_the_published_update(ratio: float, skip: float) -> None:
    num_tokens, c, expected = 64, 0.2, []
    critical = float(attention.critical_std(num_tokens))
    for _ in range(6):
        c = by_hand(c, skip, max(0.0, 1 - 1 / (ratio * math.sqrt(1 - c))))
        expected.append(c)
    found = collapse.by_block(skip, 0.2, 6, num_tokens, attention.many_tokens(ratio * critical))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_block_expanded_is_the_block() -> None:
    rows = attention.random_logits(3.0, 64)
    near = collapse.expansion(1.5, jnp.array([0.3, 0.7]), 8, rows)
    off = 0.015
    law = [collapse.by_block(1.5, c, 1, 8, rows)[0] for c in near.at + off]
    series = near.value + off * (near.slope + off * (near.curvature / 2 + off * near.third / 6))
    # The differences are of second order in a step of .02 that is as large as what is left out.
    np.testing.assert_allclose(series, law, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma_q", [0.1, 5.0])
def test_nearly_equal_tokens_merge_as_the_skip_alone_says(sigma_q: float) -> None:
    apart = 1e-4
    rows = attention.random_logits(sigma_q)
    behind = 1 - collapse.by_block(0.7, 1 - apart, 1, 8, rows)[0]
    # Relu's kernel takes 2 √2 apart^1.5/(3 pi) more; the logits of differences sigma_q² apart.
    tolerance = math.sqrt(apart) + sigma_q**2 * apart
    np.testing.assert_allclose(apart / behind, collapse.merging(0.7), rtol=tolerance)
