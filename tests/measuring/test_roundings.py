"""What rounding inside a layer leaves unknown, held against exact rationals and known ranks."""

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import certificate, jacobians, linearisation, roundings, spectra
from gradlab.models import chain
from tests import arbitrary

WIDTH = 6


def normalised(z: Any) -> Any:
    return z / jnp.linalg.norm(z)


def centred(z: Any) -> Any:
    return (z - jnp.mean(z)) / jnp.std(z)


# Layers with the dimension of what they take to nothing, whatever the input.
SINGULAR: dict[str, tuple[Any, int]] = {
    "z/|z|": (normalised, 1),
    "LayerNorm": (centred, 2),
    "softmax": (jax.nn.softmax, 1),
}


def draw(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("z/|z|", jnp.float64), ("LayerNorm", jnp.float32), ("softmax", jnp.float64)],
)
def test_what_a_layer_takes_to_nothing_is_unknown_everywhere(name: str, dtype: Any) -> None:
    layer, num = SINGULAR[name]

    @jax.jit
    def measured(x: Any) -> Any:
        return (
            spectra.singular_values([layer], x, (1,)),
            spectra.log_growth([layer], x),
            jacobians.log_abs_det([layer], x),
        )

    for seed in range(5):
        found, growth, log_det = measured(jnp.asarray(draw(seed, WIDTH), dtype))
        lost = np.arange(WIDTH) >= WIDTH - num
        np.testing.assert_array_equal(np.isnan(found.log[0]), lost)
        np.testing.assert_array_equal(np.isnan(growth[0]), lost)
        assert np.isnan(log_det[0])
    if name == "z/|z|":
        # Those that are left are those of a projection over the length: a few roundings.
        expected = -np.log(np.linalg.norm(draw(4, WIDTH)))
        np.testing.assert_allclose(
            found.log[0][:-1], expected, atol=8 * float(jnp.finfo(dtype).eps)
        )


def test_neither_a_bound_nor_vectors_make_a_number_of_what_is_lost() -> None:
    x = jnp.asarray(draw(0, WIDTH))
    assert np.isinf(certificate.singular_value_bound([normalised], x, (1,))[0])
    values = spectra.singular_vectors([normalised], x).singular_values
    np.testing.assert_array_equal(np.isnan(values.mantissa), np.arange(WIDTH) == WIDTH - 1)


def test_an_exponent_of_a_direction_that_is_gone_is_unknown_and_the_others_descend() -> None:
    W = jnp.asarray(draw(0, 40, 4, 4))
    model = chain.Chain(lambda W, z: normalised(W @ z), W)
    found = jax.jit(lambda m: spectra.lyapunov_exponents(m, jnp.ones(4), 0, 4))(model)
    np.testing.assert_array_equal(np.isnan(found.values), [False, False, False, True])
    assert np.all(np.diff(found.values[:3]) <= 0)
    # A QR keeps the order of directions that no layer mixes: their rates do not descend by it.
    rates = jnp.asarray([-1.0, 2.0, 0.0, 1.0])
    run = jax.jit(lambda J: spectra.lyapunov_exponents(chain.linear(J), jnp.zeros(4), 0, 2))
    J = jnp.tile(jnp.diag(jnp.exp(rates)), (40, 1, 1)).at[20:].set(jnp.diag(jnp.exp(-3 * rates)))
    assert np.all(np.diff(run(J).values) <= 0)


VALUES = jax.jit(spectra.singular_values, static_argnums=2)


@pytest.mark.parametrize("s", [1e-13, 3e-16, 1e-16])
def test_beside_a_large_rank_one_what_is_kept_of_a_small_part_is_known_to_a_tenth(s: float) -> None:
    """Also where all entries are changed by an ulp, two of the half ulps that they stand for."""
    for seed in range(4):
        u, v, rest = draw(seed, WIDTH), draw(seed + 9, WIDTH), draw(seed + 99, WIDTH, WIDTH)
        J = np.outer(u, v) + s * rest
        found = VALUES(chain.linear(jnp.asarray(J)[None]), jnp.zeros(WIDTH), (1,))
        is_kept = ~found.lost[0]
        error = np.abs(found.log[0] - arbitrary.log_singular_values([J]))
        assert np.max(error[is_kept]) < (0.1 if found.lost.any() else 1e-12)
        changed = np.nextafter(J, np.inf * draw(seed + 7, WIDTH, WIDTH))
        moved = np.abs(found.log[0] - arbitrary.log_singular_values([changed]))
        assert np.max(moved[is_kept]) < 0.1 + 2 * 0.1 or not found.lost.any()
        assert s < 1e-13 or not found.lost.any()


def exact_jacobian(V: Any, W: Any, z: Any) -> Any:
    """That of `V ((W z) * (W z)) - z` in exact rationals."""
    V, W, z = (np.vectorize(Fraction)(x) for x in (V, W, z))
    return 2 * (V * (W @ z)[None, :]) @ W - np.vectorize(Fraction)(np.eye(len(z)))


def test_no_entry_of_a_jacobian_is_further_from_the_exact_one_than_its_bound() -> None:
    @jax.jit
    def both(V: Any, W: Any, z: Any) -> Any:
        def layer(params: Any, z: Any) -> Any:
            return params[0] @ jnp.square(params[1] @ z) - z

        _, linear = linearisation.linearise(layer, (V, W), z)
        return linear.jacobian((V, W)), roundings.of_jacobian(linear, (V, W))

    for seed in range(20):
        V, W, z = (draw(3 * seed + k, *([WIDTH] * (2 - k // 2))) for k in range(3))
        J, bound = both(V, W, z)
        error = np.abs(np.vectorize(Fraction)(np.asarray(J)) - exact_jacobian(V, W, z))
        assert np.all(error <= np.vectorize(Fraction)(np.asarray(bound)))
        # Nor is it far above: the entries' terms, times the few dozen roundings that are allowed.
        terms = 2 * np.abs(V) * np.abs(W @ z) @ np.abs(W) + np.eye(WIDTH)
        assert np.all(bound <= 64 * np.finfo(float).eps * terms * WIDTH)


@pytest.mark.parametrize(
    "layer",
    [
        lambda z: jnp.tanh(jnp.ones((4, 3)) @ z),
        lambda z: jnp.concatenate([jnp.sin(z), z])[::2] * 3,
        jnp.diff,
        jnp.cumsum,
        lambda z: jax.lax.scan(lambda c, a: (0.5 * c + a, c), 0.0, z)[1],
        lambda z: jnp.convolve(z, jnp.ones(2)),
    ],
)
def test_any_operation_has_a_bound_and_only_sums_need_one(layer: Any) -> None:
    z = jnp.asarray([0.3, -0.2, 0.9])
    _, linear = linearisation.linearise(lambda _, z: layer(z), None, z)
    bound, J = roundings.of_jacobian(linear, None), linear.jacobian(None)
    if bound is not None:
        assert bound.shape == J.shape
        assert np.all((bound >= 0) & (bound < 1e-14))
    assert (bound is None) == (not linear.takes_sums(None))


def test_a_norm_that_is_nothing_but_rounding_has_an_infinite_bound() -> None:
    v = jnp.asarray(draw(3, WIDTH))
    run = jax.jit(lambda t: certificate.log_norm_bound([lambda t: t * v, normalised], t))
    assert np.isinf(run(jnp.ones(1)))


def test_a_determinant_is_known_as_far_as_its_layers_have_rank() -> None:
    equal_rows = np.array([[0.1, 0.2, 0.3], [0.3, 0.7, 0.1], [0.4, 0.9, 0.4]])
    dead, graded = draw(1, 3, 3) * [[1], [0], [1]], draw(2, 3, 3) * [[1], [1e-9], [1e-30]]
    run = jax.jit(lambda J: jacobians.log_abs_det(chain.linear(J), jnp.zeros(3))[0])
    assert np.isnan(run(jnp.asarray(equal_rows)[None]))
    assert run(jnp.asarray(dead)[None]) == -np.inf
    # The rows' scales cost no digit: a few dozen roundings times the condition of the scaled rows.
    expected = np.sum(arbitrary.log_singular_values([graded]))
    np.testing.assert_allclose(run(jnp.asarray(graded)[None]), expected, atol=1e-12)
