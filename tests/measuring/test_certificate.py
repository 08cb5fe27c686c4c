import sys
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gradlab as gl
from gradlab.measuring import certificate, jacobians
from gradlab.models import chain
from tests import arbitrary
from tests.measuring.product_svd.drawn import (
    DEPTH,
    ENSEMBLES,
    NEARLY_SINGULAR,
    SINGULAR_VALUES,
    WIDTH,
    far_behind,
    gaussian,
    reversal,
    tanh_jacobians,
)

BOUND = jax.jit(certificate.singular_value_bound, static_argnums=2)
NORM_BOUND = jax.jit(certificate.log_norm_bound)
LOG_NORMS = jax.jit(jacobians.log_norms)


def undone(rng: Any) -> Any:
    """A chain whose second half undoes the first in a basis that its entries cannot hold."""
    Q = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    return Q @ reversal(rng) @ Q.T


HARD = {"undone": undone} | NEARLY_SINGULAR


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(ENSEMBLES | HARD)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([jnp.float32, jnp.float64]),
)
def test_no_error_is_above_its_bound(name: str, seed: int, dtype: Any) -> None:
    matrices = jnp.asarray((ENSEMBLES | HARD)[name](np.random.default_rng(seed)), dtype)
    model, x = chain.linear(matrices), jnp.zeros(WIDTH, dtype)
    exact = arbitrary.log_singular_values(matrices)
    got = SINGULAR_VALUES(model, x, (DEPTH,))
    ulps = 2 * np.finfo(dtype).eps * np.abs(exact)  # of the log itself, which is no product's error
    error = np.where(got.lost[0], 0, np.abs(got.log[0] - exact))
    assert not (error > BOUND(model, x, (DEPTH,)) + ulps).any()
    norm = exact[0] + np.log(np.sum(np.exp(2 * (exact - exact[0])))) / 2
    assert abs(LOG_NORMS(model, x)[-1] - norm) <= NORM_BOUND(model, x) + ulps.max()


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(sorted(ENSEMBLES | HARD)),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([jnp.float32, jnp.float64]),
)
def test_no_error_is_above_its_bound_where_inputs_are_few(name: str, seed: int, dtype: Any) -> None:
    """What rounding puts beside the few directions there are may grow more than any of them."""
    rng = np.random.default_rng(seed)
    first = jnp.asarray(rng.normal(size=(WIDTH, 2)), dtype)
    matrices = jnp.asarray((ENSEMBLES | HARD)[name](rng), dtype)
    model = [*chain.linear([first]), chain.linear(matrices)]
    exact = arbitrary.log_singular_values([first, *matrices])[:2]
    got = SINGULAR_VALUES(model, first[0], (DEPTH + 1,))
    ulps = 2 * np.finfo(dtype).eps * np.abs(exact)  # as above
    error = np.where(got.lost[0], 0, np.abs(got.log[0] - exact))
    assert not (error > BOUND(model, first[0], (DEPTH + 1,)) + ulps).any()


def test_no_error_is_above_its_bound_where_scales_are_far_apart() -> None:
    model, x = chain.linear(jnp.asarray(far_behind(np.random.default_rng(8)))), jnp.zeros(WIDTH)
    exact = arbitrary.log_singular_values(model.params)
    error = np.abs(SINGULAR_VALUES(model, x, (DEPTH,)).log[0] - exact)
    ulps = 2 * np.finfo(float).eps * np.abs(exact)  # as above
    assert (error <= BOUND(model, x, (DEPTH,)) + ulps).all()


def test_a_chain_that_is_dead_is_known_to_be() -> None:
    matrices = jnp.asarray(gaussian(np.random.default_rng(0))).at[20].set(0)
    model, x = chain.linear(matrices), jnp.zeros(WIDTH)
    assert (SINGULAR_VALUES(model, x, (DEPTH,)).log == -np.inf).all()
    assert BOUND(model, x, (DEPTH,)) < 1e-9


def test_the_bounds_of_an_ordinary_chain_are_worth_having() -> None:
    matrices = jnp.asarray(np.eye(WIDTH) + 0.1 * gaussian(np.random.default_rng(0)))
    model, x = chain.linear(matrices), jnp.zeros(WIDTH)
    # 40 layers and five units: some hundred roundings, and what their conditions add.
    assert BOUND(model, x, (DEPTH,)) < 1e-9
    assert NORM_BOUND(model, x) < 1e-11


def test_a_chain_that_undoes_more_than_the_digits_can_hold_has_no_bound() -> None:
    """1e20 up and down, which twice the digits of float32 do not hold and those of float64 do."""
    matrices = jnp.asarray(undone(np.random.default_rng(0)))
    bounds = [
        BOUND(chain.linear(matrices.astype(dtype)), jnp.zeros(WIDTH, dtype), (DEPTH,))[0]
        for dtype in (jnp.float32, jnp.float64)
    ]
    assert np.isinf(bounds[0])
    # Rounding in the second half of the digits, 1e-23, magnified by 1e20 and once more by mixing.
    assert bounds[1] < 1e-4
    exact = arbitrary.log_singular_values(matrices)
    got = SINGULAR_VALUES(chain.linear(matrices), jnp.zeros(WIDTH), (DEPTH,)).log[0]
    assert (np.abs(got - exact) <= bounds[1]).all()


def test_a_chain_that_undoes_it_all_without_rounding_has_a_good_bound() -> None:
    model = chain.linear(jnp.asarray(reversal(np.random.default_rng(0))))
    # Forty diagonal layers: some hundred roundings.
    assert BOUND(model, jnp.zeros(WIDTH), (DEPTH,))[0] < 1e-11


def test_every_step_is_exact_for_a_layer_changed_by_a_few_roundings() -> None:
    matrices = jnp.asarray(tanh_jacobians(np.random.default_rng(0), 3.0))
    left = jax.jit(certificate.residuals)(chain.linear(matrices), jnp.zeros(WIDTH))
    assert left.backward.shape == left.orthogonality.shape == (DEPTH,)
    # Householder QR of five columns: some ulp.
    assert left.backward.max() < 2e-15
    assert left.orthogonality.max() < 4e-15


def test_an_enclosure_holds_the_exact_values_and_is_as_narrow_as_asked() -> None:
    rng = np.random.default_rng(0)
    matrices = list(rng.normal(size=(6, 3, 3)) * 10.0 ** rng.uniform(-20, 20, (6, 3, 1)))
    lower, upper = certificate.enclosure(matrices, 1e-12)
    with mpmath.workdps(300):
        product = mpmath.eye(3)
        for J in matrices:
            product = mpmath.matrix(J.tolist()) * product
        exact = [mpmath.log(s) for s in mpmath.svd_r(product, compute_uv=False)]
    assert all(a <= e <= b for a, e, b in zip(lower, exact, upper, strict=True))
    assert (upper - lower).max() <= 1e-12


def test_an_enclosure_says_what_it_cannot_tell_from_zero() -> None:
    matrices = np.random.default_rng(0).normal(size=(4, 3, 3))
    matrices[1, 1] = matrices[1, 2]
    lower, upper = certificate.enclosure(list(matrices), 1e-12)
    np.testing.assert_array_equal(np.isneginf(lower), [False, False, True])
    assert upper[2] < upper[1] - 100


def test_the_float_method_lies_in_the_enclosure() -> None:
    matrices = gaussian(np.random.default_rng(1))
    got = SINGULAR_VALUES(chain.linear(jnp.asarray(matrices)), jnp.zeros(WIDTH), (DEPTH,)).log[0]
    lower, upper = certificate.enclosure(matrices, 1e-12)
    # The rounding of forty layers of condition up to 1e3.
    assert (got > lower - 1e-10).all()
    assert (got < upper + 1e-10).all()


def test_without_flint_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flint", None)
    monkeypatch.delitem(sys.modules, "gradlab.arithmetic.balls", raising=False)
    monkeypatch.delattr("gradlab.arithmetic.balls", raising=False)
    with pytest.raises(ImportError, match=r"gradlab\[certify\]"):
        certificate.enclosure([np.eye(2)], 1e-10)


def test_both_ways_agree_within_the_rounding_that_they_state_and_that_is_little() -> None:
    phi = gl.activations.PHI["tanh"]
    layer = gl.ensembles.gaussian(jax.random.key(0), 6, 5, phi, 1.3, 0.1).layer

    @jax.jit
    def ways(params: Any, x: jax.Array, v: jax.Array) -> Any:
        def part(k: slice) -> gl.chain.Chain:
            return gl.chain.Chain(layer, jax.tree.map(lambda leaf: leaf[k], params))

        states = [x, *gl.chain.states(part(slice(0, 6)), x)[1:]]
        tails = [v @ jax.jacrev(part(slice(k, 6)))(states[k]) for k in range(6)]
        heads = [jax.jacrev(part(slice(0, k + 1)))(x) for k in range(6)]
        return certificate.both_ways(part(slice(0, 6)), x, v), tails, heads

    for seed in range(3):
        key_model, key_row = jax.random.split(jax.random.key(seed))
        model = gl.ensembles.gaussian(key_model, 6, 5, phi, 1.3, 0.1)
        x, v = jnp.linspace(-1, 1, 5), jax.random.normal(key_row, (5,))
        both, tails, heads = ways(model.params, x, v)
        for k, (tail, P) in enumerate(zip(tails, heads, strict=True)):
            arrived = np.linalg.norm(tail) / np.linalg.norm(v)
            through = np.linalg.norm(v @ P) / np.linalg.norm(v)
            norms = np.log([arrived, np.linalg.norm(P, 2), np.linalg.norm(P), through])
            np.testing.assert_allclose(both.literal[:, k], norms, rtol=1e-10, atol=1e-12)

        np.testing.assert_array_less(np.abs(both.fast - both.literal), both.rounding)
        assert np.max(both.rounding) < 1e-9


def test_the_rounding_of_both_ways_is_above_that_of_a_shorter_format() -> None:
    phi = gl.activations.PHI["tanh"]
    layer = gl.ensembles.gaussian(jax.random.key(0), 6, 5, phi, 0.9, 0.1).layer

    @jax.jit
    def both_ways(params: Any, x: jax.Array, v: jax.Array) -> certificate.BothWays:
        return certificate.both_ways(gl.chain.Chain(layer, params), x, v)

    for seed in range(3):
        key_model, key_x, key_row = jax.random.split(jax.random.key(seed), 3)
        x, v = (jax.random.normal(key, (5,)) for key in (key_x, key_row))
        model = gl.ensembles.gaussian(key_model, 6, 5, phi, 0.9, 0.1)
        exact = both_ways(model.params, x, v).literal
        both = both_ways(*jax.tree.map(lambda leaf: leaf.astype("f4"), (model.params, x, v)))
        for path in (both.fast, both.literal):
            np.testing.assert_array_less(np.abs(path - exact), both.rounding)


def test_a_loss_that_is_halved_is_beyond_the_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = jacobians.log_gradient_norms
    monkeypatch.setattr(
        jacobians,
        "log_gradient_norms",
        lambda model, x, loss: honest(model, x, lambda z: loss(z) / 2),
    )
    model = gl.ensembles.gaussian(jax.random.key(0), 4, 5, gl.activations.PHI["tanh"], 1.3, 0.1)
    both = jax.jit(certificate.both_ways)(model, jnp.ones(5), jnp.ones(5))
    np.testing.assert_allclose(both.literal[0] - both.fast[0], np.log(2), rtol=1e-9)


def test_factors_multiplied_out_have_the_norm_of_numpys_product() -> None:
    matrices = np.random.default_rng(3).normal(size=(7, 4, 4))
    log, rounding = certificate.multiplied_out(chain.linear(jnp.asarray(matrices)), jnp.zeros(4))
    expected = np.log(np.linalg.norm(np.linalg.multi_dot(matrices[::-1])))
    assert abs(log - expected) <= rounding
    assert rounding < 1e-11
    other = np.log(np.linalg.norm(np.linalg.multi_dot(matrices)))  # in the other order
    assert abs(log - other) > 1e6 * rounding


@pytest.mark.parametrize("depth", [3, 30])
def test_few_layers_are_at_most_few_and_the_one_that_they_speak_for_has_no_fewer(
    depth: int,
) -> None:
    made: list[tuple[int, gl.chain.Chain]] = []

    def drawn(key: Any, num: int) -> gl.chain.Chain:
        made.append((num, gl.ensembles.gaussian(key, num, 5, gl.activations.PHI["tanh"], 1.3, 0.1)))
        return made[-1][1]

    @jax.jit
    def few_and_product(key: Any) -> tuple[certificate.BothWays, jax.Array]:
        few = certificate.of_few_layers(key, drawn, 5, depth)
        x = jax.random.normal(jax.random.split(key, 3)[1], (5,))
        return few, jax.jacrev(made[-1][1])(x)

    few, J = few_and_product(jax.random.key(3))
    assert [num for num, _ in made] == [min(depth, certificate.FEW)]
    np.testing.assert_allclose(few.literal[2, -1], np.log(np.linalg.norm(J)), rtol=1e-9)
