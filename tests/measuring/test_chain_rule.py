"""The literal path: every Jacobian, every product, in any range."""

import jax
import jax.numpy as jnp
import numpy as np

import gradlab as gl


def tanh_chain(depth: int, width: int, sigma_w: float = 1.2) -> gl.chain.Chain:
    phi = gl.activations.PHI["tanh"]
    return gl.ensembles.gaussian(jax.random.key(1), depth, width, phi, sigma_w, 0.1)


def test_it_is_the_derivative_of_the_whole_chain_and_of_every_beginning_of_it() -> None:
    model, x = tanh_chain(7, 5), gl.ensembles.inputs(jax.random.key(2), 5, 1.0)
    found = gl.chain_rule.products(model, x)
    plain = gl.scaled.unscale(found.products).value

    for k in (1, 4, 7):
        begun = gl.chain.Chain(model.layer, jax.tree.map(lambda leaf, k=k: leaf[:k], model.params))
        np.testing.assert_allclose(plain[k - 1], jax.jacrev(begun)(x), rtol=1e-12, atol=1e-14)


def test_every_factor_is_the_jacobian_of_its_layer() -> None:
    model, x = tanh_chain(6, 4), gl.ensembles.inputs(jax.random.key(2), 4, 1.0)
    states = gl.chain.states(model, x)

    for k, J in enumerate(gl.chain_rule.products(model, x).jacobians):
        W = model.params.W[k]
        np.testing.assert_allclose(J, (1 - states[k + 1] ** 2)[:, None] * W, rtol=1e-12, atol=1e-14)


def test_it_has_the_bits_of_the_fast_path_where_layers_are_linear() -> None:
    W = jax.random.normal(jax.random.key(3), (9, 4, 4))
    model, x = gl.chain.linear(W), jnp.zeros(4)
    literal = gl.chain_rule.products(model, x).products
    fast = gl.jacobians.partial_products(model, x)[-1]

    np.testing.assert_allclose(
        gl.scaled.unscale(fast).value, gl.scaled.unscale(literal).value[-1], rtol=1e-13
    )


def test_a_product_that_no_float_can_hold_is_there_to_the_last_digit() -> None:
    found = gl.chain_rule.products(gl.ensembles.scalar(1e-3, 5000), jnp.ones(1))

    log = gl.scaled.log_magnitude(found.products)[:, 0, 0]
    np.testing.assert_allclose(log, np.arange(1, 5001) * np.log(1e-3), rtol=1e-12)


def test_widths_may_differ_and_layers_be_any_function() -> None:
    W = jax.random.normal(jax.random.key(4), (3, 5))
    layers = [lambda z: jnp.sin(W @ z), lambda z: jnp.concatenate([z, z**2])]
    x = jnp.linspace(-1, 1, 5)
    found = gl.chain_rule.products(layers, x)

    assert [J.shape for J in found.jacobians] == [(3, 5), (6, 3)]
    whole = jax.jacrev(lambda z: layers[1](layers[0](z)))(x)
    np.testing.assert_allclose(gl.scaled.unscale(found.products[-1]).value, whole, rtol=1e-12)


def test_the_gradient_of_every_weight_is_that_of_jax_whatever_the_widths() -> None:
    phi = gl.activations.PHI["tanh"]
    keys = jax.random.split(jax.random.key(3), 3)
    model = [
        *gl.ensembles.network(keys[0], (6, 4), phi, 1.2, 0.1),
        gl.ensembles.gaussian(keys[1], 5, 4, phi, 1.2, 0.1),
        *gl.ensembles.network(keys[2], (4, 4, 3), phi, 1.2, 0.1),
    ]
    x = jnp.linspace(-1, 1, 6)

    def loss(z: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(z) ** 2)

    found = gl.chain_rule.weight_gradients(model, x, loss)
    wanted = jax.grad(lambda model: loss(gl.training.apply_model(model, x)))(model)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-14)


def test_a_row_goes_through_the_last_factor_first() -> None:
    J = jnp.arange(1.0, 9.0).reshape(2, 2, 2)
    row = jnp.array([1.0, -1.0])
    through, left = gl.chain_rule.rows_through(row, J)

    np.testing.assert_array_equal(through, row @ J[1] @ J[0])
    np.testing.assert_array_equal(left, jnp.stack([row @ J[1], row]))
    wide, alone = gl.chain_rule.rows_through(row, J[:1, :, :1])
    assert wide.shape == (1,)
    np.testing.assert_array_equal(alone, row[None])


def test_what_arrives_of_a_row_is_its_product_with_each_matrix() -> None:
    model, x = tanh_chain(5, 4), gl.ensembles.inputs(jax.random.key(2), 4, 1.0)
    v = jnp.array([1.0, -2.0, 0.5, 3.0])
    products = gl.chain_rule.products(model, x).products
    expected = np.log(np.linalg.norm(v @ gl.scaled.unscale(products).value, axis=1))

    np.testing.assert_allclose(gl.chain_rule.log_lengths(v, products), expected, rtol=1e-13)


def test_what_arrives_is_known_where_no_float_holds_it() -> None:
    model = gl.chain.linear(jnp.broadcast_to(1e-3 * jnp.eye(3), (400, 3, 3)))
    products = gl.chain_rule.products(model, jnp.ones(3)).products
    v = jnp.array([0.6, 0.0, 0.8])

    np.testing.assert_allclose(
        gl.chain_rule.log_lengths(v, products), np.log(1e-3) * np.arange(1, 401), rtol=1e-12
    )


def test_the_gradient_in_every_state_is_that_of_the_fast_path_within_little_rounding() -> None:
    v = jax.random.normal(jax.random.key(3), (16,))
    for sigma_w in (0.5, 1.2, 2.5):  # it vanishes, stays, explodes
        model, x = tanh_chain(30, 16, sigma_w), gl.ensembles.inputs(jax.random.key(2), 16, 1.0)
        literal = gl.chain_rule.log_norms_back(model, x, lambda z: v @ jnp.sin(z))
        fast = gl.jacobians.log_gradient_norms(model, x, lambda z: v @ jnp.sin(z))

        assert literal.logs.shape == (31,)
        assert np.all(np.abs(literal.logs - fast) <= literal.rounding)
        assert np.all(literal.rounding < 1e-6)


def test_a_gradient_that_no_float_can_hold_has_its_log() -> None:
    model = gl.ensembles.scalar(1e-3, 500)
    found = gl.chain_rule.log_norms_back(model, jnp.ones(1), lambda z: 2 * z[0])

    wanted = np.log(2) + np.arange(500, -1, -1) * np.log(1e-3)
    np.testing.assert_allclose(found.logs, wanted, rtol=1e-13)
