import functools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.arithmetic import scaled
from gradlab.measuring import chain_rule, jacobians
from gradlab.models import chain

LOG_NORMS = jax.jit(jacobians.log_norms)


def tanh_layer(params: Any, z: Any) -> Any:
    return jnp.tanh(params["W"] @ z + params["b"])


def tanh_chain(
    depth: int, width: int, sigma_w: Any = 1.0, seed: int = 0, dtype: Any = jnp.float64
) -> Any:
    key_W, key_b = jax.random.split(jax.random.key(seed))
    W = sigma_w * jax.random.normal(key_W, (depth, width, width), dtype) / width**0.5
    return chain.Chain(tanh_layer, {"W": W, "b": jax.random.normal(key_b, (depth, width)) / 10})


def networks() -> Any:
    """Models of every kind that are accepted, with an input each."""
    W = [jax.random.normal(jax.random.key(n), (n, m)) / m**0.5 for m, n in ((5, 3), (3, 6), (6, 4))]
    varying = [chain.Chain(tanh_layer, {"W": w[None], "b": jnp.zeros((1, len(w)))}) for w in W]
    residual = chain.Chain(
        lambda W, z: z + jnp.tanh(W @ z), jax.random.normal(jax.random.key(3), (7, 5, 5)) / 3
    )
    normalised = chain.Chain(
        lambda W, z: W @ z / jnp.sqrt(1 + jnp.mean((W @ z) ** 2)), residual.params
    )
    return {
        "chain": tanh_chain(6, 5),
        "varying widths": varying,
        "residual": residual,
        "normalised": normalised,
        "recurrent": chain.Chain(
            tanh_layer,
            jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf, (9, *leaf.shape[1:])), tanh_chain(1, 5).params
            ),
        ),
        "closures and chains": [residual, lambda z: z**2, *varying, jnp.sin],
    }


INPUT = jnp.linspace(-1.0, 1.0, 5)
each_network = pytest.mark.parametrize("name", networks())


def apply(model: Any, x: Any) -> Any:
    for segment in chain.segments(model):
        x = segment(x)
    return x


def loss(z: Any) -> Any:
    return jnp.sum(jnp.sin(z) + z**2)


def everything(model: Any, x: Any) -> Any:
    """All that this room measures of one model, to be compiled once."""
    depth = chain.depth(model)
    return {
        "states": chain.states(model, x),
        "jacobians": chain.jacobians(model, x),
        "whole": jax.jacrev(lambda x: apply(model, x))(x),
        "product": jacobians.product(model, x),
        "scaled": scaled.unscale(jacobians.scaled_product(model, x)).value,
        "norms": jacobians.log_norms(model, x),
        "spectral": jacobians.log_spectral_norms(model, x),
        "partial": [scaled.unscale(s).value for s in jacobians.partial_products(model, x)],
        "states_gradient": jacobians.log_gradient_norms(model, x, loss),
        "gradients": jacobians.weight_gradients(model, x, loss),
        "some": {k: jacobians.weight_gradient(model, x, loss, k) for k in (1, depth)},
        "autodiff": jax.grad(lambda parts: loss(apply(parts, x)))(list(chain.segments(model))),
    }


@functools.cache
def measured(name: str, dtype: Any) -> Any:
    """Every network is measured once; the sequences stay sequences."""
    model = networks()[name]
    parts = jax.tree.map(lambda leaf: leaf.astype(dtype), list(chain.segments(model)))
    return jax.jit(everything)(parts, INPUT.astype(dtype))


def partial_products(seen: Any) -> Any:
    J = [np.asarray(j) for j in seen["jacobians"]]
    return functools.reduce(lambda ps, j: [*ps, j @ ps[-1]], J[1:], [J[0]])


@each_network
def test_the_product_is_the_jacobian_of_the_whole_chain(name: str) -> None:
    seen = measured(name, jnp.float64)
    # Both are sums of the same terms in another order: some ulp of the norm a layer.
    tolerance = 1e-14 * float(np.linalg.norm(seen["whole"]))
    np.testing.assert_allclose(seen["product"], seen["whole"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(seen["scaled"], seen["whole"], rtol=0, atol=tolerance)


@each_network
def test_every_depth_has_the_norms_and_the_product_of_its_partial_product(name: str) -> None:
    seen = measured(name, jnp.float64)
    P = partial_products(seen)
    # Ten layers of some ulp each.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-13)
    close(seen["norms"], [np.log(np.linalg.norm(p)) for p in P])
    close(seen["spectral"], [np.log(np.linalg.norm(p, 2)) for p in P])
    for p, got in zip(P, seen["partial"], strict=True):
        close(got / np.linalg.norm(p), p / np.linalg.norm(p))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, jnp.float64) for name in networks()), ("varying widths", jnp.float32)],
)
def test_the_gradient_of_every_layers_weights_is_that_of_automatic_differentiation(
    name: str, dtype: Any
) -> None:
    seen = measured(name, dtype)
    expected = [
        chain.params_at(part.params, k) for part in seen["autodiff"] for k in range(part.depth)
    ]
    # 10 roundings a layer, norm-wise: each factor of the product is rounded.
    bound = 10 * len(expected) * jnp.finfo(dtype).eps
    pairs = [*enumerate(seen["gradients"], start=1), *seen["some"].items()]
    for layer, gradient in pairs:
        for a, b in zip(*map(jax.tree.leaves, (gradient, expected[layer - 1])), strict=True):
            assert a.dtype == b.dtype
            assert np.linalg.norm(a - b) <= bound * np.linalg.norm(b)


@each_network
def test_the_gradient_of_every_state_has_the_norm_of_the_row_times_the_jacobians(name: str) -> None:
    seen = measured(name, jnp.float64)
    row = jax.grad(loss)(seen["states"][-1])
    expected = [np.log(np.linalg.norm(row))]
    for j in seen["jacobians"][::-1]:
        row = row @ j
        expected.insert(0, np.log(np.linalg.norm(row)))
    # Ten layers of some ulp each.
    np.testing.assert_allclose(seen["states_gradient"], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["chain", "residual", "recurrent"])
def test_the_log_determinant_is_that_of_the_partial_product(name: str) -> None:
    expected = [np.linalg.slogdet(p)[1] for p in partial_products(measured(name, jnp.float64))]
    got = jax.jit(jacobians.log_abs_det)(networks()[name], INPUT)
    # The rounding of the plain product is amplified by its condition, up to 1e4 here.
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_a_chain_that_changes_its_width_has_no_determinant() -> None:
    with pytest.raises(ValueError, match=r"Layer 1 goes from width 5 to 3"):
        jacobians.log_abs_det(networks()["varying widths"], INPUT)


def test_the_gradients_of_a_chain_have_the_shape_of_its_parameters() -> None:
    model = tanh_chain(6, 5)
    gradients = jax.jit(lambda m: jacobians.weight_gradients(m, INPUT, loss))(model)
    expected = jax.jit(jax.grad(lambda p: loss(chain.Chain(tanh_layer, p)(INPUT))))(model.params)
    for name in ("W", "b"):
        # Six layers of some ulp each.
        np.testing.assert_allclose(gradients[name], expected[name], rtol=1e-12)
    logs = jax.jit(lambda m: jacobians.log_weight_gradient_norms(m, INPUT, loss))(model)
    squares = sum(jnp.sum(jnp.square(g.reshape(6, -1)), axis=1) for g in expected.values())
    np.testing.assert_allclose(logs, jnp.log(squares) / 2, rtol=0, atol=1e-13)  # as above


def test_a_batch_goes_through_vmap_and_jit() -> None:
    model, batch = tanh_chain(6, 5), jax.random.normal(jax.random.key(9), (3, 5))
    together = jax.jit(jax.vmap(lambda x: jacobians.log_norms(model, x)))(batch)
    alone = [LOG_NORMS(model, x) for x in batch]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-13)  # another order of sums
    first = jax.vmap(lambda x: jacobians.weight_gradient(model, x, loss, 1)["W"])
    firsts = jax.jit(first)(batch)
    expected = jax.grad(
        lambda p: jnp.sum(jax.vmap(lambda x: loss(chain.Chain(tanh_layer, p)(x)))(batch))
    )(model.params)["W"][0]
    np.testing.assert_allclose(firsts.sum(0), expected, rtol=1e-11, atol=1e-14)  # as above


def test_log_norms_have_the_derivative_of_the_plain_norm() -> None:
    x = INPUT

    def last(params: Any) -> Any:
        return jacobians.log_norms(chain.Chain(tanh_layer, params), x)[-1]

    def plain(params: Any) -> Any:
        return jnp.log(jnp.linalg.norm(jacobians.product(chain.Chain(tanh_layer, params), x)))

    params = tanh_chain(4, 5).params
    for a, b in zip(
        *(jax.tree.leaves(jax.jit(jax.grad(f))(params)) for f in (last, plain)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)  # rounding of four layers


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.sampled_from([1, 2, 5]),
    depth=st.sampled_from([2, 30]),
    spread=st.sampled_from([0.0, 1.0, 15.0]),
    dtype=st.sampled_from([jnp.float32, jnp.float64]),
)
def test_log_norms_are_right_in_any_range(
    seed: int, width: int, depth: int, spread: Any, dtype: Any
) -> None:
    """Layers scaled by powers of ten from 1e-15 to 1e15 against arbitrary precision."""
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-spread - 1, spread, depth)
    Js = jnp.asarray(rng.normal(size=(depth, width, width)) * scales[:, None, None], dtype)
    P = functools.reduce(
        lambda p, j: mpmath.matrix(np.asarray(j, float).tolist()) * p, Js, mpmath.eye(width)
    )
    expected = mpmath.log(mpmath.mnorm(P, "f"))
    got = float(LOG_NORMS(chain.linear(Js), jnp.zeros(width, dtype))[-1])
    # Normwise growth of rounding: width eps a layer, times how much the product cancels in the
    # direction of the start (Gaussian layers: rarely above 100); one ulp of the log itself.
    eps = float(jnp.finfo(dtype).eps)
    assert abs(got - expected) < eps * (100 * depth * width + 2 * abs(expected))


@pytest.mark.parametrize("depth", [2, 100, 127, 128, 129, 151, 300])
def test_blocks_of_layers_leave_no_layer_out_and_repeat_none(depth: int) -> None:
    """One block, several, and such as must be filled up, with the gradient of the first weights."""
    model = tanh_chain(depth, 3)
    got = LOG_NORMS(model, INPUT[:3])
    J = chain.jacobians(model, INPUT[:3])
    P = functools.reduce(lambda ps, j: [*ps, j @ ps[-1]], J[1:], [J[0]])
    # Some ulp a layer, amplified by what a product of 300 tanh layers cancels.
    np.testing.assert_allclose(got, [jnp.log(jnp.linalg.norm(p)) for p in P], rtol=0, atol=1e-12)

    def last(params: Any) -> Any:
        return jacobians.log_norms(chain.Chain(tanh_layer, params), INPUT[:3])[-1]

    def plain(params: Any) -> Any:
        P = jacobians.product(chain.Chain(tanh_layer, params), INPUT[:3])
        return jnp.log(jnp.linalg.norm(P))

    ours, theirs = (jax.jit(jax.grad(f))(model.params)["W"] for f in (last, plain))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)  # as above, and once backwards


def test_what_a_layer_closes_over_has_its_derivative_too() -> None:
    W = tanh_chain(37, 3).params["W"]

    def last(gain: Any) -> Any:
        return jacobians.log_norms(chain.Chain(lambda W, z: gain * (W @ z), W), INPUT[:3])[-1]

    # Every layer is linear and scales with the gain: the slope is depth / gain.
    for slope in (jax.jit(jax.grad(last))(0.5), jax.grad(jax.jit(last))(0.5)):
        np.testing.assert_allclose(slope, 37 / 0.5, rtol=1e-13)  # some ulp a layer


@pytest.mark.parametrize(("width", "depth"), [(2, 40), (20, 12), (64, 6)])
@pytest.mark.parametrize(("exponent", "dtype"), [(498, jnp.float64), (83, jnp.float32)])
def test_one_layer_may_leave_the_range_of_squares(
    width: int, depth: int, exponent: Any, dtype: Any
) -> None:
    """Layers that scale by 2^±498 (1e±150), in float32 by 2^±83 (1e±25), in runs and in turn."""
    rng = np.random.default_rng(width)
    exponents = np.array([exponent, exponent, -exponent, -exponent, 0, exponent] * depth)[:depth]
    turns = np.stack([np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in exponents])
    J = jnp.asarray(turns * 2.0 ** exponents[:, None, None], dtype)
    got = LOG_NORMS(chain.linear(J), jnp.zeros(width, dtype))
    expected = np.cumsum(exponents) * np.log(2) + np.log(width) / 2
    # Every layer is orthogonal up to its rounding, which is width ulp at most; an ulp of the log.
    tolerance = float(jnp.finfo(dtype).eps) * (width * np.arange(1, depth + 1) + np.abs(expected))
    assert (np.abs(got - expected) <= tolerance).all()


@pytest.mark.parametrize(
    ("factor", "dtype"), [(0.5, jnp.float32), (4.0, jnp.float32), (2.0**-60, jnp.float64)]
)
def test_a_product_far_out_of_range_is_exact(factor: float, dtype: Any) -> None:
    depth = 3000
    J = jnp.broadcast_to(factor * jnp.eye(3, dtype=dtype), (depth, 3, 3))
    P = jacobians.scaled_product(chain.linear(J), jnp.ones(3, dtype))
    np.testing.assert_array_equal(P.mantissa, np.eye(3))
    assert P.exponent[0, 0] == depth * np.log2(factor)
    logs = LOG_NORMS(chain.linear(J), jnp.ones(3, dtype))
    steps = np.arange(1, depth + 1) * np.log(factor) + np.log(3) / 2
    # An ulp or two of the log itself.
    np.testing.assert_allclose(logs, steps, rtol=3 * float(jnp.finfo(dtype).eps))


def test_zero_infinity_and_nan_arrive_unmasked() -> None:
    J = jnp.broadcast_to(jnp.eye(2), (4, 2, 2))
    x = jnp.ones(2)
    dead = LOG_NORMS(chain.linear(J.at[1].set(0.0)), x)
    np.testing.assert_array_equal(dead, [np.log(2) / 2, -np.inf, -np.inf, -np.inf])
    blown = chain.Chain(lambda s, z: jnp.where(s > 1, jnp.inf, s) * z, jnp.asarray([1.0, 2.0, 1.0]))
    assert np.isposinf(LOG_NORMS(blown, jnp.ones(1))[1])
    lost = jacobians.log_norms([jnp.sin, lambda z: jnp.sqrt(z - 2)], x)
    assert np.isfinite(lost[0])
    assert np.isnan(lost[1])


def test_memory_does_not_grow_with_depth() -> None:
    """The compiled program's temporary buffers are those of one layer."""

    def size(depth: int) -> Any:
        model, x = tanh_chain(depth, 8), jnp.ones(8)
        analysis: Any = jax.jit(jacobians.log_norms).lower(model, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    # Two scalars a layer are the result itself, 16 bytes before the logarithm is taken.
    assert size(2000) - size(1000) <= 1000 * 3 * 16


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no layer 7; the layers are 1 to 6"):
        jacobians.weight_gradient(tanh_chain(6, 5), INPUT, loss, 7)


def kernel(factor: float) -> Any:
    """tanh with weights, with a rule of its own for going back alone, as a fused kernel has it."""

    @jax.custom_vjp
    def layer(W: Any, z: Any) -> Any:
        return factor * jnp.tanh(W @ z)

    def back(saved: Any, row: Any) -> Any:
        W, z = saved
        delta = row * factor * (1 - jnp.tanh(W @ z) ** 2)
        return jnp.outer(delta, z), delta @ W

    layer.defvjp(lambda W, z: (layer(W, z), (W, z)), back)
    return layer


def test_what_only_goes_back_needs_no_forward_derivative() -> None:
    params, x = tanh_chain(4, 3).params["W"], jnp.linspace(0.1, 0.9, 3)
    fused = chain.Chain(kernel(0.9), params)
    plain = chain.Chain(lambda W, z: 0.9 * jnp.tanh(W @ z), params)
    for function in (
        jacobians.log_gradient_norms,
        jacobians.log_weight_gradient_norms,
        jacobians.weight_gradients,
    ):
        # The same sums in another order, four layers.
        np.testing.assert_allclose(function(fused, x, loss), function(plain, x, loss), rtol=1e-12)
    np.testing.assert_allclose(chain.states(fused, x), chain.states(plain, x), rtol=1e-15)
    with pytest.raises(TypeError, match="Layer 1 has no forward derivative"):
        jacobians.log_norms(fused, x)


def test_bools_ints_and_keys_have_no_gradient() -> None:
    def layer(params: Any, z: Any) -> Any:
        kept = jnp.where(params["mask"], params["W"], 0.0)
        return jnp.tanh(kept @ z[params["order"]] + jax.random.normal(params["key"], z.shape))

    W = tanh_chain(3, 4).params["W"]
    others = {
        "mask": jnp.arange(48).reshape(3, 4, 4) % 3 > 0,
        "order": jnp.tile(jnp.array([2, 0, 3, 1]), (3, 1)),
        "key": jax.random.split(jax.random.key(5), 3),
    }
    model, x = chain.Chain(layer, {"W": W, **others}), jnp.linspace(0.1, 0.9, 4)
    expected = jax.grad(lambda W: loss(chain.Chain(layer, {"W": W, **others})(x)))(W)
    found = jacobians.weight_gradients(model, x, loss)
    assert [name for name, leaf in found.items() if leaf is not None] == ["W"]
    np.testing.assert_allclose(found["W"], expected, rtol=1e-12)  # three layers, some ulps each
    logs = np.log(np.linalg.norm(expected.reshape(3, -1), axis=1))
    np.testing.assert_allclose(
        jacobians.log_weight_gradient_norms(model, x, loss), logs, rtol=1e-12, atol=1e-12
    )
    products = chain_rule.products(model, x).jacobians
    norm = np.log(np.linalg.norm(np.linalg.multi_dot(products[::-1])))
    np.testing.assert_allclose(jacobians.log_norms(model, x)[-1], norm, atol=1e-12)


def test_an_activation_in_a_list_has_no_weights_and_so_no_gradient_of_them() -> None:
    W = tanh_chain(2, 3).params["W"]
    model = [chain.linear(W[:1]), jnp.tanh, chain.linear(W[1:])]
    logs = jacobians.log_weight_gradient_norms(model, jnp.ones(3), loss)
    expected = jax.grad(lambda W: loss(W[1] @ jnp.tanh(W[0] @ jnp.ones(3))))(W)
    norms = np.linalg.norm(expected.reshape(2, -1), axis=1)
    np.testing.assert_allclose(np.exp(logs), [norms[0], 0.0, norms[1]], rtol=1e-13)
