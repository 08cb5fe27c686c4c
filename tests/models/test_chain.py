from itertools import pairwise
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models import chain


def tanh_layer(params: Any, z: Any) -> Any:
    return jnp.tanh(params["W"] @ z + params["b"])


def tanh_chain(depth: int = 5, width: int = 4, seed: int = 0, dtype: Any = jnp.float64) -> Any:
    key_W, key_b = jax.random.split(jax.random.key(seed))
    W = jax.random.normal(key_W, (depth, width, width), dtype) / jnp.sqrt(width).astype(dtype)
    b = jax.random.normal(key_b, (depth, width), dtype) / 10
    return chain.Chain(tanh_layer, {"W": W, "b": b})


def varying(widths: Any = (5, 3, 4, 2), seed: int = 1) -> Any:
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    Ws = [
        jax.random.normal(k, (m, n)) / 3 for k, n, m in zip(keys, widths, widths[1:], strict=False)
    ]
    return [chain.Chain(lambda W, z: jnp.tanh(W @ z), W[None]) for W in Ws], Ws


def test_the_states_of_a_chain_are_its_layers_applied_one_by_one() -> None:
    model, x = tanh_chain(), jnp.linspace(-1.0, 1.0, 4)
    z, expected = x, [x]
    for k in range(5):
        z = tanh_layer(chain.params_at(model.params, k), z)
        expected.append(z)
    # 4 ulp: the scan's matmul may sum in another order than the eager one.
    np.testing.assert_allclose(chain.states(model, x), expected, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(model(x), expected[-1], rtol=1e-15, atol=1e-16)


def test_the_jacobian_of_a_tanh_layer_is_its_closed_form() -> None:
    model, x = tanh_chain(), jnp.linspace(-1.0, 1.0, 4)
    outputs = chain.states(model, x)[1:]
    expected = (1 - outputs**2)[:, :, None] * model.params["W"]
    # A few ulp, of 1 - tanh^2 at |h| < 2.
    np.testing.assert_allclose(chain.jacobians(model, x), expected, rtol=1e-14)


def test_a_sequence_of_layers_of_varying_width_has_one_jacobian_a_layer() -> None:
    model, Ws = varying()
    x = jnp.linspace(-1.0, 1.0, 5)
    J = chain.jacobians(model, x)
    assert [j.shape for j in J] == [(3, 5), (4, 3), (2, 4)]
    z = chain.states(model, x)
    assert [s.shape for s in z] == [(5,), (3,), (4,), (2,)]
    for j, W, out in zip(J, Ws, z[1:], strict=True):
        np.testing.assert_allclose(j, (1 - out**2)[:, None] * W, rtol=1e-14)  # a few ulp
    assert chain.depth(model) == 3


def test_closures_and_chains_mix() -> None:
    inner = tanh_chain(depth=3)
    W = jnp.ones((2, 4))
    model = [inner, lambda z: z**2, lambda z: W @ z]
    x = jnp.linspace(0.1, 1.0, 4)
    assert chain.depth(model) == 5
    J = chain.jacobians(model, x)
    assert len(J) == 5
    np.testing.assert_array_equal(J[4], W)
    np.testing.assert_array_equal(J[3], jnp.diag(2 * chain.states(model, x)[3]))


def linears(*widths: int) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), len(widths) - 1)
    return tuple(
        eqx.nn.Linear(*pair, key=k) for pair, k in zip(pairwise(widths), keys, strict=True)
    )


def test_alike_equinox_modules_become_one_stacked_chain() -> None:
    bare = linears(*[4] * 7, 2)
    model = chain.linear(bare)
    parts = chain.segments(model)
    assert [p.depth for p in parts] == [6, 1]
    x = jnp.linspace(-1.0, 1.0, 4)
    J = chain.jacobians(model, x)
    for module, j in zip(bare, J, strict=True):
        np.testing.assert_array_equal(j, module.weight)
    by_hand = x
    for module in bare:
        by_hand = module(by_hand)
    # Each layer is rounded once: some ulp in all.
    np.testing.assert_allclose(chain.states(model, x)[-1], by_hand, rtol=1e-14)


def test_an_equinox_sequential_is_a_model() -> None:
    key_1, key_2 = jax.random.split(jax.random.key(0))
    model: Any = eqx.nn.Sequential(
        [eqx.nn.Linear(3, 4, key=key_1), eqx.nn.Lambda(jnp.tanh), eqx.nn.Linear(4, 2, key=key_2)]
    )
    x = jnp.linspace(-1.0, 1.0, 3)
    product = np.linalg.multi_dot(chain.jacobians(model, x)[::-1])
    np.testing.assert_allclose(product, jax.jacrev(model)(x), rtol=1e-13)  # a few ulp a layer


def test_states_and_jacobians_pass_through_vmap_jit_and_grad() -> None:
    model = tanh_chain()
    batch = jax.random.normal(jax.random.key(1), (3, 4))
    together = jax.jit(jax.vmap(lambda x: chain.jacobians(model, x)))(batch)
    for x, J in zip(batch, together, strict=True):
        # Batched matmuls sum in another order: ulps.
        np.testing.assert_allclose(J, chain.jacobians(model, x), rtol=1e-12, atol=1e-14)
    gradient = jax.grad(lambda x: jnp.sum(chain.jacobians(model, x) ** 2))(batch[0])
    assert np.isfinite(gradient).all()


def test_a_linear_chain_has_the_given_matrices_as_jacobians() -> None:
    matrices = jax.random.normal(jax.random.key(0), (3, 4, 4))
    np.testing.assert_array_equal(chain.jacobians(chain.linear(matrices), jnp.ones(4)), matrices)


class Masked(eqx.Module):
    """A layer with weights, a mask, the order of its units and a key: three are no weights."""

    W: Any
    mask: Any
    order: Any
    key: Any

    def __call__(self, z: Any) -> Any:
        kept = jnp.where(self.mask, self.W, 0.0)
        return jnp.tanh(kept @ z[self.order] + jax.random.normal(self.key, z.shape))


def masked(width: int = 3) -> list[Masked]:
    W, order = jnp.eye(width) / 2 + 0.1, np.roll(np.arange(width), 1)
    mask = np.tril(np.ones((width, width), bool))
    return [Masked((k + 1) * W, mask, order, jax.random.key(k)) for k in range(2)]


def test_bools_ints_and_keys_of_a_module_are_part_of_it() -> None:
    model, x = masked(), jnp.linspace(0.1, 0.5, 3)
    assert [part.depth for part in chain.segments(model)] == [2]
    J = chain.jacobians(model, x)
    state = x
    for module, j in zip(model, J, strict=True):
        np.testing.assert_allclose(j, jax.jacrev(module)(state), rtol=1e-14)  # a few ulp
        state = module(state)
    np.testing.assert_allclose(chain.states(model, x)[-1], state, rtol=1e-14)


def test_a_layer_of_a_mask_alone_has_no_weights() -> None:
    mask: Any = jnp.array([True, False, True])
    only = jax.tree_util.Partial(lambda mask, z: jnp.where(mask, z, 0.0), mask)
    np.testing.assert_array_equal(chain.jacobians([only, only], jnp.ones(3))[1], jnp.diag(mask))


MLP = eqx.nn.MLP(4, 2, 4, 3, activation=jnp.tanh, key=jax.random.key(3))


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (MLP.layers, "Layers 1 and 2 are Linear and Linear with nothing between"),
        (list(MLP.layers[2:]), "Layers 1 and 2 are Linear and Linear"),
        ([MLP.layers[0], jnp.tanh, *MLP.layers[1:3]], "Layers 3 and 4 are Linear and Linear"),
    ],
)
def test_layers_taken_out_of_an_mlp_without_its_activation_are_refused(
    layers: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=r"gl\.chain\.linear\(layers\)") as caught:
        chain.jacobians(layers, jnp.ones(4))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "between",
    [
        chain.linear,
        lambda layers: [part for layer in layers for part in (layer, eqx.nn.Identity())],
        lambda layers: [part for layer in layers for part in (layer, lambda z: z)],
        eqx.nn.Sequential,
        lambda layers: [lambda z, layer=layer: layer(z) for layer in layers],
    ],
)
def test_a_chain_that_is_meant_to_be_linear_is_said_to_be_so(between: Any) -> None:
    found = np.linalg.multi_dot(chain.jacobians(between(MLP.layers), jnp.ones(4))[::-1])
    expected = np.linalg.multi_dot([layer.weight for layer in MLP.layers[::-1]])
    # Two roundings a sum of four terms, four factors.
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)


def nan_weight(depth: int, bad: Any) -> Any:
    model = tanh_chain(depth)
    model.params["W"] = model.params["W"].at[bad - 1, 1, 1].set(jnp.nan)
    return model


@jax.custom_vjp
def only_backwards(z: Any) -> Any:
    return z


only_backwards.defvjp(lambda z: (z, None), lambda _, g: (g,))


@pytest.mark.parametrize(
    ("model", "error", "says"),
    [
        (varying()[0][:1] + varying()[0][2:], ValueError, "Layer 2 does not take a state"),
        (nan_weight(5, bad=4), ValueError, "Layer 4 has a weight that is not finite"),
        ([tanh_chain(2, 5), tanh_chain(2, 4)], ValueError, "Layer 3 does not take"),
        (
            [tanh_chain(2, 5), *[lambda z: z[:4]], nan_weight(5, bad=4)],
            ValueError,
            "Layer 7 has a weight that is not finite",
        ),
        ([lambda z: z, only_backwards], TypeError, "Layer 2 has no forward derivative"),
        ([lambda z: z, jnp.argsort], TypeError, "The output of layer 2 has dtype int"),
        (chain.linear(jnp.ones((2, 5, 5), int)), TypeError, "A weight of layer 1 has dtype int"),
        ([lambda z: jnp.outer(z, z)], ValueError, "Layer 1 must give one vector"),
        ([lambda z: z.astype(jnp.float32)], TypeError, "Layer 1 takes float64 and gives float32"),
        (chain.linear(jnp.ones((2, 4, 5))), ValueError, "Layer 1 takes (5,) and gives (4,)"),
        ([], ValueError, "at least one layer"),
        (jnp.tanh, TypeError, "A model is a Chain or a sequence"),
        ([3], TypeError, "one of them is a int"),
        (
            chain.Chain(tanh_layer, {"W": jnp.ones((2, 5, 5)), "b": jnp.ones((3, 5))}),
            ValueError,
            "leading axes",
        ),
    ],
)
def test_a_bad_model_is_refused_by_the_name_of_its_layer(model: Any, error: Any, says: Any) -> None:
    with pytest.raises(error) as caught:
        chain.jacobians(model, jnp.ones(5))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (jnp.ones((2, 4)), ValueError, "takes one vector, not an input of shape (2, 4)"),
        (jnp.ones(4, int), TypeError, "The input has dtype int"),
        (jnp.ones(4, complex), TypeError, "The input has dtype complex"),
    ],
)
def test_a_bad_input_is_refused(x: jax.Array, error: Any, says: Any) -> None:
    with pytest.raises(error) as caught:
        chain.states(tanh_chain(), x)
    assert says in str(caught.value)
