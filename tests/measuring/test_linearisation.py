from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import linearisation
from gradlab.models.activations import PHI


def layers_normalised(W: Any, z: Any) -> Any:
    z = (z - jnp.mean(z)) / jnp.sqrt(jnp.var(z) + 1e-5)
    return jax.nn.relu(W @ z)


def attention(W: Any, z: Any) -> Any:
    x = z.reshape(2, 2)
    q, k, v = x @ W[:2, :2], x @ W[:2, 2:], x @ W[2:, 2:]
    return (jax.nn.softmax(q @ k.T) @ v).reshape(-1) + z


def a_scan_inside(W: Any, z: Any) -> Any:
    return jax.lax.scan(lambda z, w: (jnp.tanh(w @ z), None), z, jnp.stack([W, W.T]))[0]


def wide_inside(W: Any, z: Any) -> Any:
    V = jnp.concatenate([W, 2 * W])
    return z + V.T @ jnp.tanh(V @ z)


def checkpointed(W: Any, z: Any) -> Any:
    return jax.checkpoint(lambda z: jnp.tanh(z @ W))(z)


def two_precisions(W: Any, z: Any) -> Any:
    return jax.lax.dot(z[None], W, precision=("highest", "default"))[0]


# Layers `(4, 4), (4,) -> any width`: what the rules are for, and what they are not for.
LAYERS = {
    "tanh": lambda W, z: jnp.tanh(W @ z),
    "weights on the right": lambda W, z: jnp.tanh(z @ W),
    "an activation of ours": lambda W, z: PHI["tanh"](W @ z),
    "residual": lambda W, z: z - 0.1 * jnp.sin(W @ z),
    "the identity": lambda _, z: z,
    "a constant": lambda *_: jnp.ones(3),
    "entry by entry": lambda W, z: 2 * jnp.sin(z) + z**2 / W[0] + jnp.where(z > 0, z, W[1] * z),
    "a scalar on the way": lambda _, z: z / jnp.linalg.norm(z),
    "one output": lambda W, z: (W[0] @ z)[None],
    "narrower": lambda _, z: jnp.sort(z)[:3],
    "outer product": lambda W, z: jnp.outer(z, W[0]) @ z,
    "both sides": lambda W, z: jnp.where(z > 0, z @ W, W @ z),
    "batch dimensions": lambda W, z: jnp.einsum("ij,i->ij", W, z).sum(0),
    "layer normalisation": layers_normalised,
    "attention": attention,
    "wide inside": wide_inside,
    "convolution": lambda W, z: jnp.convolve(z, W[0, :3], mode="same"),
    "a scan inside": a_scan_inside,
    "a branch": lambda _, z: jax.lax.cond(z[0] > 0, jnp.sin, jnp.cos, z),
    "checkpointed": checkpointed,
    "Fourier": lambda _, z: jnp.fft.fft(z).real,
    "a solve": lambda W, z: jnp.linalg.solve(W, jnp.sin(z)),
    "two precisions": two_precisions,
    "running sum": lambda _, z: jnp.cumsum(z),
}
W = jax.random.normal(jax.random.key(0), (4, 4))
Z = jax.random.normal(jax.random.key(1), (4,))
COLUMNS = jax.random.normal(jax.random.key(2), (4, 3))


def both(layer: Any, W: Any, z: Any) -> Any:
    """J times columns and J itself, and the same by forward differentiation."""
    reference = jax.jacfwd(lambda z: layer(W, z))(z)
    pushed = linearisation.push(layer, W, z, COLUMNS)[1]
    return {
        "pushed": (pushed, reference @ COLUMNS),
        "J": (linearisation.jacobian(layer, W, z)[1], reference),
        "output": (linearisation.push(layer, W, z, COLUMNS)[0], layer(W, z)),
    }


@pytest.mark.parametrize("name", LAYERS)
def test_columns_and_the_jacobian_are_those_of_forward_differentiation(name: str) -> None:
    layer = LAYERS[name]
    for ours, theirs in both(layer, W, Z).values():
        assert ours.dtype == theirs.dtype
        # Sums of a few terms of order one in another order, magnified by a solve's condition.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_it_goes_through_jit_vmap_and_backwards(name: str) -> None:
    layer = LAYERS[name]
    several = jnp.stack([Z, -2 * Z])
    together = jax.jit(jax.vmap(lambda z: both(layer, W, z)))(several)
    for ours, theirs in together.values():
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13)  # as above

    def summed(which: Any, W: Any) -> Any:
        return sum(jnp.sum(pair[which]) for pair in both(layer, W, Z).values())

    ours, theirs = (jax.jit(jax.grad(lambda W, i=i: summed(i, W)))(W) for i in (0, 1))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)  # as above, and once backwards


def num_products(function: Any, *arguments: Any) -> Any:
    """The matrix products in what a function compiles to."""
    text = jax.jit(function).lower(*arguments).as_text()
    return text.count("dot_general")


@pytest.mark.parametrize(
    "name", ["tanh", "weights on the right", "an activation of ours", "residual", "checkpointed"]
)
def test_the_jacobian_of_a_layer_with_one_product_needs_none(name: str) -> None:
    layer = LAYERS[name]
    # The state's own: W z. Times columns there is one more.
    own = num_products(lambda W, z: jax.linearize(lambda z: layer(W, z), z)[0], W, Z)
    if name == "checkpointed":
        own += 1  # the state once more
    assert num_products(lambda W, z: linearisation.jacobian(layer, W, z), W, Z) == own


def test_an_infinite_derivative_is_not_made_zero_and_a_zero_stays_one() -> None:
    """Off the diagonal the identity's zeros would become nan beside an infinity."""
    J = linearisation.jacobian(lambda _, z: jnp.sqrt(z), None, jnp.asarray([0.0, 4.0]))[1]
    np.testing.assert_array_equal(J, [[np.inf, 0], [0, 0.25]])


@pytest.mark.parametrize("width", [3, 8, 11, 16, 17])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_a_small_product_is_rounded_as_a_large_one_is(width: int, dtype: Any) -> None:
    """Terms of one sign: sums in the type itself, if it is short, would lose width / 2 ulp."""
    A, B = (jax.random.uniform(jax.random.key(n), (width, width), dtype) for n in (3, 4))
    got = jax.jit(linearisation.matmul)(A, B)
    assert got.dtype == dtype
    exact = np.asarray(A, float) @ np.asarray(B, float)
    # One rounding of the result; where the sums are in the type itself, one a term.
    eps, terms = float(jnp.finfo(dtype).eps), 1 if dtype.dtype.itemsize < 4 else width
    assert (np.abs(np.asarray(got, float) - exact) <= 0.51 * terms * eps * exact).all()
