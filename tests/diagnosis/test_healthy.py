"""What users' models have, and no law forbids: set numbers, learnt queries, derivatives, keys."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.diagnosis import anatomy, checks_weights, door, entries, laws

SQUARE = 12


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def drawn(seed: int, *shape: int) -> jax.Array:
    """Entries of variance 1/fan_in."""
    normal = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(normal / shape[0] ** 0.5, jnp.float32)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("blocks.3.proj.weight", "blocks.*.proj.weight"),
        ("params.encoderblock_3.MlpBlock_0.Dense_1.kernel",
         "params.encoderblock_*.MlpBlock_*.Dense_1.kernel"),
        ("params.layers_11.kernel", "params.layers_*.kernel"),
        ("blocks.3.conv_1.weight", "blocks.*.conv_1.weight"),
        ("params.Dense_1.bias", "params.Dense_1.bias"),
        ("mlp/~/linear_1.w", "mlp/~/linear_1.w"),
        ("conv2d.w_1", "conv2d.w_1"),
    ],
)  # fmt: skip
def test_numbers_of_blocks_are_stars_and_those_of_classes_are_not(name: str, role: str) -> None:
    assert anatomy.starred(name) == role


SLOPE = jnp.float32(0.7)


@pytest.mark.parametrize(
    "phi",
    [
        lambda h: jax.nn.leaky_relu(h, 0.9),
        lambda h: jnp.where(h > 0, h, SLOPE * h),
        jax.nn.elu,
        jax.nn.selu,
        jax.nn.celu,
        jax.nn.hard_swish,
        jax.nn.mish,
        lambda h: jnp.square(jax.nn.relu(h)),
    ],
)
def test_an_activation_is_read_with_its_numbers(phi: Any) -> None:
    params = [drawn(k, SQUARE, SQUARE) for k in range(2)]
    h = jnp.linspace(-3, 3, 4 * SQUARE).reshape(4, SQUARE)

    def function(params: Any, x: jax.Array) -> jax.Array:
        return phi(x @ params[0]) @ params[1]

    leaves, treedef = jax.tree.flatten(h)
    subject = door.opened((params, function))
    first, _ = anatomy.of_loss(subject, leaves, treedef, lambda m, b: jnp.mean(m(b))).layers
    found = anatomy.function(first)

    assert found is not None
    np.testing.assert_allclose(found(h), phi(h), rtol=1e-6)
    slopes = [jax.jvp(f, (h,), (jnp.ones_like(h),))[1] for f in (found, phi)]
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-6)


def attended(params: Any, batch: Any) -> jax.Array:
    """Learnt states look at data; decay rates are set; the last matrix is drawn by a key."""
    x, key = batch
    queries = params["learnt"] @ params["query"]
    weights = jax.nn.softmax(queries @ (x @ params["key"]).swapaxes(-1, -2) / 2)
    z = weights @ (x @ params["value"])
    for block in params["blocks"]:
        z = jax.nn.sigmoid(block["decay"]) * z + z @ block["w"]
    mean, spread = params["mean"], jax.nn.softplus(params["spread"])
    return z @ (mean + spread * jax.random.normal(key, mean.shape))


def test_set_numbers_learnt_queries_and_drawn_weights_are_no_findings() -> None:
    width = 16
    blocks = [
        {"decay": jnp.linspace(2.0, 5.0, width), "w": drawn(k, width, width)} for k in range(3)
    ]
    names = ("query", "key", "value")
    params = {
        "learnt": 0.1 * drawn(9, 4, width),
        **{name: drawn(10 + k, width, width) for k, name in enumerate(names)},
        "blocks": blocks,
        "mean": drawn(20, width, 3),
        "spread": jnp.full((width, 3), -5.0),
    }
    batch = 4 * drawn(30, 8, 6, width), jax.random.key(1)
    found = gl.audit((params, attended), batch, lambda m, b: jnp.mean(jnp.square(m(b))))

    assert found.findings == []
    assert "mean" in {row.layer for row in found.layers}


def test_a_derivative_inside_the_loss_is_no_loop_over_time() -> None:
    params = [drawn(0, 2, SQUARE), drawn(1, SQUARE, SQUARE), drawn(2, SQUARE, 1)]

    def function(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(jnp.tanh(x @ params[0]) @ params[1])
        return (hidden @ params[2])[0]

    def curvature(model: Any, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(jax.vmap(jax.hessian(model))(batch)[:, 0, 0] - 1))

    found = gl.audit((params, function), jnp.asarray(drawn(5, 8, 2)), curvature)
    assert not [f for f in found.findings if f.kind == "gain"]


@pytest.mark.parametrize(
    ("law", "name"),
    [
        (lambda r, n: r.standard_normal(n), "normal"),
        (lambda r, n: r.uniform(-1, 1, n), "uniform"),
        # Kurtosis 2.37, as of a normal distribution cut off at two sigma, but not cut off there.
        (lambda r, n: r.uniform(-1, 1, n) + 0.3535 * r.standard_normal(n), ""),
    ],
)
def test_a_distribution_is_named_by_its_kurtosis_and_its_bound(law: Any, name: str) -> None:
    size = 128 * 128
    array = jnp.asarray(law(np.random.default_rng(0), size).reshape(128, 128), jnp.float32)
    assert laws.shape_of(entries.weights(array), z=4.0) == name


def test_trained_biases_have_no_law_and_constants_have_one() -> None:
    levels = [math.log(rms) for rms in (0.01, 0.012, 0.011, 0.01, 0.011, 0.04)]
    errors = [0.1] * 6

    assert laws.outliers(levels, errors, 4.0, math.log(laws.MOST_TRAINED)) == {}
    assert list(laws.outliers(levels, errors, 4.0)) == [5]


def test_complex_states_are_measured_by_their_modulus() -> None:
    params = {"real": drawn(0, SQUARE, SQUARE), "imag": drawn(1, SQUARE, SQUARE)}
    x = drawn(2, 16, SQUARE)

    def turned(params: Any, x: jax.Array) -> jax.Array:
        return x @ (params["real"] + 1j * params["imag"])

    found = gl.audit((params, turned), x, lambda m, b: jnp.mean(jnp.square(jnp.abs(m(b)))))
    expected = np.sqrt(np.mean(np.square(np.abs(np.asarray(turned(params, x))))))

    (row,) = found.layers
    # The root of a mean of 192 squares, each rounded a few times.
    assert row.output == pytest.approx(float(expected), rel=1e-5)
    assert found.findings == []


@pytest.mark.parametrize(("num", "is_draw"), [(2, True), (3, True), (4, False), (12, False)])
def test_a_half_of_a_complex_matrix_is_no_depth_scaling(num: int, is_draw: bool) -> None:
    assert checks_weights._is_draw(-math.log(num) / 2) is is_draw


def scanned(params: Any, x: jax.Array) -> jax.Array:
    """A selective scan's step: softplus of a small projection and a bias that sets its size."""
    step = jax.nn.softplus(x @ params["step"] + params["bias"])
    return (step * (x @ params["value"])) @ params["out"]


def test_the_bias_of_a_step_size_may_be_larger_than_what_it_is_added_to() -> None:
    sizes = jnp.geomspace(1e-3, 1e-1, SQUARE)  # Gu and Dao 2023
    names = ("step", "value", "out")
    params = {name: drawn(k, SQUARE, SQUARE) for k, name in enumerate(names)}
    params |= {"step": 0.1 * params["step"], "bias": jnp.log(jnp.expm1(sizes))}
    found = gl.audit((params, scanned), drawn(5, 8, SQUARE), lambda m, b: jnp.mean(m(b) ** 2))
    assert not [f for f in found.findings if f.kind == "drowned"]


def test_logits_of_alike_examples_are_as_many_draws_as_there_are_classes() -> None:
    """Drawn at the law's own size, √(2 log n): no batch makes ten draws' size better known.

    One of 20 audits has a finding by chance in a tenth of seeds at most (this is none of them).
    Held against 64 rows, as if these were drawn one by one, the largest would be one.
    """
    num, num_rows, num_draws = 10, 64, 20
    labels = jnp.arange(num_rows) % num

    def times(W: Any, x: Any) -> Any:
        return x @ W

    def loss(model: Any, batch: Any) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(model(batch))[jnp.arange(num_rows), labels])

    heads = (2 * math.log(num)) ** 0.5 * drawn(3, SQUARE, num_draws, num)
    audits = [gl.audit((heads[:, k], times), jnp.ones((num_rows, SQUARE)), loss)
              for k in range(num_draws)]  # fmt: skip
    assert not [f for a in audits for f in a.findings if f.kind == "output logits"]
    sizes = [float(a.facts.measured.softmaxes["load"][0]) ** 0.5 for a in audits]
    assert max(sizes) > 1 + audits[0].facts.z * (2 * num_rows) ** -0.5
