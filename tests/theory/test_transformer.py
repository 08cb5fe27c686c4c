"""Tokens through wide blocks: closed forms of uniform attention, and a wide network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.models.activations import PHI
from gradlab.theory import transformer

RELU = PHI["relu"]
DESIGN = gl.transformer.Design


@pytest.fixture(scope="module")
def attention() -> dict[int, transformer.Signal]:
    """Attention and the identity, branches 1/√L, 32 orthogonal tokens, by depth L."""
    return {
        depth: transformer.signal(
            RELU, DESIGN(branch=depth**-0.5), np.ones(depth, bool), 1.0, 0.0, 32
        )
        for depth in (12, 1000)
    }


@pytest.mark.parametrize(("depth", "expected"), [(12, 0.0479883853), (1000, 0.0509217251)])
def test_scaled_branches_leave_tokens_apart(
    depth: int, expected: float, attention: dict[int, transformer.Signal]
) -> None:
    g = (1 + 1 / depth) ** depth

    np.testing.assert_allclose(1 - attention[depth].apart_after[-1], expected, atol=6e-11, rtol=0)
    np.testing.assert_allclose(
        1 - attention[depth].apart_after[-1], (g - 1) / (32 + g - 1), rtol=1e-11
    )


def test_plain_skips_double_what_tokens_share() -> None:
    seen = transformer.signal(RELU, DESIGN(), np.ones(12, bool), 1.0, 0.0, 32)

    np.testing.assert_allclose(1 - seen.apart_after[-1], 0.9922461837, atol=6e-11, rtol=0)
    np.testing.assert_allclose(seen.total[-1], 128.96875, rtol=1e-13)


def test_what_tokens_differ_by_stays_and_the_queries_share_falls_with_it() -> None:
    T, depth = 32, 100
    seen = transformer.signal(RELU, DESIGN(), np.ones(depth, bool), 1.0, 0.0, T)
    power = 2.0 ** np.arange(1, depth + 1)

    np.testing.assert_allclose(seen.apart_after, T / (T + power - 1), rtol=1e-13)
    np.testing.assert_allclose(seen.total[-1], 3.9614e28, rtol=2e-5)
    # Plain skips keep q (1 - c), so the share falls to (T - 1)/T² only; with norms it vanishes.
    share = transformer.query_share(seen.total, seen.apart_after, T)
    np.testing.assert_allclose(share[-1], (T - 1) / T**2, rtol=1e-13)
    normed = transformer.query_share(1.0, seen.apart_after, T)
    np.testing.assert_allclose(normed[-1] / normed[-2], 0.25, rtol=1e-13)


@pytest.mark.parametrize("start", [0.02, 1.0])
def test_a_norm_at_the_branches_end_adds_one_each(start: float) -> None:
    m = np.arange(1, 65)
    seen = transformer.signal(
        RELU, gl.transformer.DESIGNS["reordered"], m % 2 == 1, start**2, 0.0, 8
    )

    np.testing.assert_allclose(np.sqrt(seen.total), np.sqrt(start**2 + m), rtol=1e-13)


def test_the_last_matrix_has_the_share_of_its_branch_in_the_sum() -> None:
    kinds = np.arange(6) % 2 == 0
    for name, design in gl.transformer.DESIGNS.items():
        seen = transformer.signal(RELU, design, kinds, 1.3, 0.2, 5)
        back = transformer.gradient(RELU, design, kinds, seen, 5)
        behind = 1.0 if name == "Post" else float(seen.total[-1])

        np.testing.assert_allclose(
            back.weight[-1] / behind, seen.added[-1] / seen.total[-1], rtol=1e-13
        )


def test_the_printed_recursion_is_a_square_of_the_depth() -> None:
    s = transformer.word_for_word(1.0, 1000)

    for depth, expected, digits in ((10, 31.0512, 4), (100, 2502.377, 3), (1000, 249448.8, 1)):
        assert round(float(s[depth - 1]), digits) == expected
    np.testing.assert_allclose(jnp.log2(s[999] / s[499]), 2, atol=0.01)


@pytest.mark.parametrize("num_tokens", [2, 5])
def test_a_linear_sublayers_distance_from_identity_is_its_matrixs(num_tokens: int) -> None:
    """Of V over the mean of tokens, and of W_2 W_1 with phi = h: E |V u|² written out."""
    both = np.array([True, False])
    seen = transformer.signal(PHI["linear"], DESIGN(branch=0.5), both, 1.0, 0.0, num_tokens)

    np.testing.assert_allclose(
        transformer.from_identity(PHI["linear"], both, seen, num_tokens),
        np.array([0.25 / num_tokens, 0.25]),
    )


def test_a_wide_network_follows_both_ways() -> None:
    """Every law by block, of one network of each design: within what its width leaves out."""
    depth, width, num_tokens = 3, 96, 4
    key_w, key_x, key_v = jax.random.split(jax.random.key(3), 3)
    weights = gl.transformer.weights(key_w, depth, width, 0.0)
    x = jax.random.normal(key_x, (num_tokens, width))
    v = jax.random.normal(key_v, (width,))
    stacked = DESIGN(*map(jnp.array, zip(*gl.transformer.DESIGNS.values(), strict=True)))

    def measured(design: gl.transformer.Design) -> tuple[jax.Array, jax.Array]:
        def loss(weights: gl.transformer.Weights) -> tuple[jax.Array, jax.Array]:
            end = gl.transformer.encoder(weights, design)(x.ravel()).reshape(x.shape)
            return v @ end[0] / jnp.linalg.norm(v), jnp.mean(end * end)

        slopes, square = jax.grad(loss, has_aux=True)(weights)
        size = jnp.stack([jnp.sum(slopes.V**2, (1, 2)), jnp.sum(slopes.W_2**2, (1, 2))], 1)
        return square, size.ravel() / width

    kinds = np.arange(2 * depth) % 2 == 0
    squares, sizes = jax.jit(jax.vmap(measured))(stacked)
    for at, design in enumerate(gl.transformer.DESIGNS.values()):
        seen = transformer.signal(RELU, design, kinds, 1.0, 0.0, num_tokens)
        back = transformer.gradient(RELU, design, kinds, seen, num_tokens)
        end = 1.0 if design.after else float(seen.total[-1])
        # Four deviations of all that this width makes random on the way.
        spread = 4 * np.sqrt(np.sum(transformer.lost_to_width(design, seen, width) * 2) + 7 / width)

        assert abs(np.log(float(squares[at]) / end)) < spread
        np.testing.assert_array_less(np.abs(np.log(sizes[at] / back.weight)), spread)
