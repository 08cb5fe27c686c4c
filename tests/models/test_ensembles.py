import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.models import chain, ensembles
from gradlab.models.activations import PHI

KEY = jax.random.key(7)
TANH, LINEAR = PHI["tanh"], PHI["linear"]
NUM_IN, NUM_OUT = 60, 40
# Of sigma_w = 1, for a matrix from NUM_IN to NUM_OUT neurons.
VARIANCE = {
    "gaussian": 1 / NUM_IN,
    "orthogonal": 1 / NUM_IN,  # rows of unit length
    "truncated": 1 / NUM_IN,
    "uniform": 1 / NUM_IN,
    "lecun": 1 / NUM_IN,
    "glorot": 2 / (NUM_IN + NUM_OUT),
    "he": 2 / NUM_IN,
}


jacobians = jax.jit(chain.jacobians)


def weights(draw: Any, sigma_w: Any = 1.0, sizes: Any = (NUM_IN, NUM_OUT), **others: Any) -> Any:
    (layer,) = ensembles.network(KEY, sizes, TANH, sigma_w, 0.0, draw=draw, **others)
    return layer.params.W[0]


@pytest.mark.parametrize("draw", ensembles.DRAWS)
def test_weights_have_mean_zero_and_the_variance_of_their_scheme(draw: Any) -> None:
    W = np.asarray(ensembles.DRAWS[draw](KEY, (50, NUM_OUT, NUM_IN), float)).ravel()
    num = W.size
    # Five standard errors of sampling: the fourth moment is at most 3 variance².
    assert abs(W.mean()) < 5 * math.sqrt(VARIANCE[draw] / num)
    assert abs(np.mean(W**2) / VARIANCE[draw] - 1) < 5 * math.sqrt(2 / num)


@pytest.mark.parametrize(
    ("draw", "edge"),
    [
        ("uniform", math.sqrt(3 / NUM_IN)),
        ("glorot", math.sqrt(6 / (NUM_IN + NUM_OUT))),
        ("truncated", 2 / 0.8796256610342398 / math.sqrt(NUM_IN)),  # sd of N(0,1) cut at ±2
    ],
)
def test_bounded_weights_fill_their_interval_and_do_not_leave_it(draw: Any, edge: Any) -> None:
    largest = float(jnp.max(jnp.abs(ensembles.DRAWS[draw](KEY, (50, NUM_OUT, NUM_IN), float))))
    assert 0.99 * edge < largest <= edge * (1 + 2**-50)


@pytest.mark.parametrize("sizes", [(24, 24), (24, 9), (9, 24)])
def test_orthogonal_weights_are_sigma_w_times_an_isometry(sizes: Any) -> None:
    W = weights("orthogonal", 1.7, sizes)
    gram = W @ W.T if sizes[1] <= sizes[0] else W.T @ W
    # Rounding of a QR decomposition: of the order of the size times eps.
    np.testing.assert_allclose(gram, 1.7**2 * np.eye(min(sizes)), atol=24 * 2**-50)


def test_orthogonal_weights_are_uniform_over_the_group() -> None:
    n, num = 4, 4000
    W = ensembles.unit_orthogonal(KEY, (num, n, n), float)
    corner = np.asarray(W[:, 0, 0])
    # Of a coordinate of a uniform point of the sphere; five standard errors of sampling.
    for power, moment in ((1, 0), (2, 1 / n), (3, 0), (4, 3 / (n * (n + 2)))):
        values = corner**power
        assert abs(values.mean() - moment) < 5 * values.std() / math.sqrt(num)
    assert abs(float(jnp.mean(jnp.linalg.det(W)))) < 5 / math.sqrt(num)


@pytest.mark.parametrize("draw", ensembles.DRAWS)
def test_one_key_gives_the_same_unit_weights_at_every_sigma_w(draw: Any) -> None:
    np.testing.assert_array_equal(weights(draw, 4.0), 4.0 * weights(draw, 1.0))


def test_sigma_w_may_be_traced_and_a_vmap_over_it_gives_what_each_gives_alone() -> None:
    def draw(sigma_w: Any) -> Any:
        return ensembles.gaussian(KEY, 3, 5, TANH, sigma_w, 0.1).params

    together = jax.vmap(draw)(jnp.asarray([0.5, 1.3]))
    for k, sigma_w in enumerate((0.5, 1.3)):
        for one, many in zip(draw(sigma_w), together, strict=True):
            np.testing.assert_array_equal(one, many[k])


def test_layers_are_independent_and_so_are_weights_and_biases() -> None:
    params = ensembles.gaussian(KEY, 2, 100, TANH, 1.0, 1.0).params
    pairs = [(params.W[0].ravel(), params.W[1].ravel()), (params.b[0], params.b[1])]
    pairs.append((params.W[0, :, 0], params.b[0]))
    for one, other in pairs:
        correlation = np.corrcoef(one, other)[0, 1]
        assert abs(correlation) < 5 / math.sqrt(one.size)  # standard errors of sampling


def test_biases_have_the_standard_deviation_sigma_b() -> None:
    b = np.asarray(ensembles.gaussian(KEY, 100, 50, TANH, 1.0, 0.3).params.b)
    assert abs(np.mean(b**2) / 0.09 - 1) < 5 * math.sqrt(2 / b.size)  # standard errors


def test_a_layer_is_one_object_for_each_phi_so_that_jit_compiles_once() -> None:
    traces = []

    @jax.jit
    def run(model: Any, x: Any) -> Any:
        traces.append(model)
        return model(x)

    for seed in (1, 2):
        run(ensembles.gaussian(jax.random.key(seed), 3, 4, TANH, 1.0, 0.0), jnp.ones(4))
    assert len(traces) == 1
    assert ensembles.plain_layer(TANH) is not ensembles.plain_layer(LINEAR)


def test_each_kind_of_layer_is_its_formula() -> None:
    x = ensembles.inputs(KEY, 6, 2.0)
    for name in ensembles.LAYERS:
        model = ensembles.random(KEY, 1, 6, TANH, 1.3, 0.4, draw="gaussian", layer=name)
        W, b = model.params.W[0], model.params.b[0]
        h = W @ x + b
        expected = {
            "plain": np.tanh(h),
            "preactivation": W @ np.tanh(x) + b,
            "normalised": np.tanh((h - h.mean()) / h.std()),
        }[name]
        np.testing.assert_allclose(model(x), expected, rtol=1e-14)  # rounding
    model = ensembles.residual(KEY, 1, 6, TANH, 1.3, 0.4, 0.5)
    W, b = model.params.affine.W[0], model.params.affine.b[0]
    np.testing.assert_allclose(model(x), x + 0.5 * np.tanh(W @ x + b), rtol=1e-14)


def test_a_residual_chain_without_its_branch_is_the_identity() -> None:
    x = ensembles.inputs(KEY, 6, 2.0)
    model = ensembles.residual(KEY, 4, 6, TANH, 1.3, 0.4, 0.0)
    np.testing.assert_array_equal(jacobians(model, x), np.broadcast_to(np.eye(6), (4, 6, 6)))


def test_the_jacobians_of_a_chain_are_diag_dphi_times_W() -> None:
    x = ensembles.inputs(KEY, 5, 1.0)
    model = ensembles.orthogonal(KEY, 4, 5, TANH, 1.5, 0.2)
    z = x
    for W, b, J in zip(*model.params, jacobians(model, x), strict=True):
        h = W @ z + b
        np.testing.assert_allclose(J, (1 - np.tanh(h) ** 2)[:, None] * W, rtol=1e-13, atol=1e-15)
        z = jnp.tanh(h)


def test_a_recurrent_chain_repeats_one_layer() -> None:
    model = ensembles.recurrent(ensembles.gaussian(KEY, 1, 4, TANH, 1.0, 0.5), 5)
    assert model.depth == 5
    for p in model.params:
        np.testing.assert_array_equal(p, jnp.broadcast_to(p[:1], p.shape))


def test_a_network_has_the_sizes_it_is_given_and_one_linear_layer_may_follow() -> None:
    key_body, key_readout = jax.random.split(KEY)
    model = ensembles.network(key_body, (7, 5, 3), TANH, 1.0, 0.1)
    model += ensembles.network(key_readout, (3, 2), LINEAR, 1.0, 0.0)
    x = ensembles.inputs(KEY, 7, 1.0)
    assert [J.shape for J in jax.eval_shape(chain.jacobians, model, x)] == [(5, 7), (3, 5), (2, 3)]
    assert chain.depth(model) == 3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_chains_are_made_in_the_type_asked_for(dtype: Any) -> None:
    w = jnp.asarray(0.9, dtype)
    one = jnp.ones(1, dtype)
    np.testing.assert_array_equal(jacobians(ensembles.scalar(0.9, 3, dtype), one), w)
    residual = jacobians(ensembles.scalar_residual(0.5, 3, dtype), one)
    np.testing.assert_array_equal(residual, jnp.asarray(1.5, dtype))

    def outputs() -> Any:
        x = ensembles.inputs(KEY, 3, 1.0, dtype)
        drawn = [
            ensembles.random(KEY, 2, 3, TANH, 1.0, 0.1, draw=draw, layer="plain", dtype=dtype)
            for draw in ensembles.DRAWS
        ]
        drawn.append(ensembles.residual(KEY, 2, 3, TANH, 1.0, 0.1, 0.5, dtype=dtype))
        return [model(x) for model in drawn]

    assert {output.dtype for output in jax.eval_shape(outputs)} == {jnp.dtype(dtype)}


def test_inputs_have_the_mean_square_and_the_correlation_asked_for() -> None:
    x = ensembles.inputs(KEY, 50, 1.7)
    np.testing.assert_allclose(jnp.mean(x * x), 1.7, rtol=1e-14)  # rounding
    for c in (-1.0, -0.3, 0.0, 0.999, 1.0):
        pair = ensembles.input_pair(KEY, 50, 1.7, c)
        gram = pair @ pair.T / 50
        np.testing.assert_allclose(gram, 1.7 * np.asarray([[1, c], [c, 1]]), rtol=1e-13, atol=1e-14)


def gaussian(
    depth: Any = 2, width: Any = 3, phi: Any = TANH, sigma_w: Any = 1.0, sigma_b: Any = 0.0
) -> Any:
    return ensembles.gaussian(KEY, depth, width, phi, sigma_w, sigma_b)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: gaussian(depth=0), ValueError, "depth is at least 1, not 0"),
        (lambda: gaussian(width=-2), ValueError, "width is at least 1, not -2"),
        (lambda: gaussian(depth=2.0), TypeError, "depth is an integer, not 2.0"),
        (lambda: gaussian(sigma_w=-1.0), ValueError, "sigma_w is a standard deviation"),
        (lambda: gaussian(sigma_b=math.inf), ValueError, "sigma_b is a standard deviation"),
        (lambda: gaussian(sigma_w=math.nan), ValueError, "not nan"),
        (lambda: gaussian(phi="tanh"), TypeError, "phi is a function"),
        (lambda: weights("gausian"), ValueError, "draw is one of gaussian, orthogonal"),
        (lambda: ensembles.network(KEY, (3,), TANH, 1.0, 0.0), ValueError, "two or more, not 1"),
        (lambda: ensembles.scalar(0.9, 0), ValueError, "depth is at least 1, not 0"),
        (lambda: ensembles.input_pair(KEY, 1, 1.0, 0.5), ValueError, "2 or more"),
    ],
)
def test_bad_input_is_named_in_one_sentence(call: Any, error: Any, sentence: Any) -> None:
    with pytest.raises(error, match=sentence):
        call()


def test_what_weights_were_drawn_from_is_told_by_powers_of_them_and_by_pairs() -> None:
    W = np.array([[[3.0, -1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 4.0]]])  # n = 2
    mean, square, fourth, neighbours, apart, mirrored = np.asarray(
        ensembles.realised(jnp.asarray(W))
    )
    assert mean == pytest.approx(math.sqrt(2) * 10 / 8, abs=1e-15)
    assert (square, fourth) == pytest.approx((2 * 32 / 8, 4 * 356 / 8), abs=1e-12)
    assert neighbours == pytest.approx(2 * (3 * 2 + 4) / 4, abs=1e-14)
    # Mean squares of the even entries 10 and 4, of the odd ones 2 and 16: 2 ((10 - 7) (2 - 9)).
    assert apart == pytest.approx(2 * (10 - 7) * (2 - 9), abs=1e-12)
    assert mirrored == pytest.approx(2 * (-1 * 1 + 0) / 2, abs=1e-14)
    # One layer has no other beside it, and one row no mirror.
    np.testing.assert_array_equal(ensembles.realised(jnp.asarray(W[:1]))[3:5], [0, 0])
    assert ensembles.realised(jnp.asarray(W[:, :1]))[5] == 0
    np.testing.assert_array_equal(
        ensembles.realised(jnp.asarray(W[0])), ensembles.realised(jnp.asarray(W[:1]))
    )
    for num, parts in ((1, [W[:1], W[1:2], W[:1]]), (2, [W]), (9, [np.stack([*W, W[0]])])):
        found = ensembles.realised_in_parts(jnp.stack([*W, W[0]]), num)
        expected = [ensembles.realised(jnp.asarray(part)) for part in parts]
        np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-15)


def test_moments_of_entries_tell_normal_ones_from_others() -> None:
    shape, key = (400, 50), jax.random.key(3)
    normal, uniform, signs = (
        ensembles.realised(draw(key, shape, float))[:3]
        for draw in (
            ensembles.unit_gaussian,
            ensembles.unit_uniform,
            lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype) / shape[1] ** 0.5,
        )
    )

    # Of 20000 entries: four standard errors, of which a fourth power of a normal has √96.
    for found, law in ((normal, (0, 1, 3)), (uniform, (0, 1, 9 / 5)), (signs, (0, 1, 1))):
        errors = np.array([1.0, 2**0.5, 96**0.5]) / 20_000**0.5
        assert np.all(np.abs(found - np.array(law)) < 4 * errors)


@pytest.mark.parametrize("place", [((1, 2), (1, 5)), ((1, slice(None), 0), (1, slice(None), 3))])
def test_one_row_or_column_that_a_layer_has_twice_is_told(place: Any) -> None:
    W = jax.random.normal(KEY, (3, 6, 7))
    twice = W.at[place[0]].set(W[place[1]])
    # In another layer it is another's, and of signs chance draws some twice.
    across, signs = W.at[0, 2].set(W[1, 5]), jnp.sign(twice)

    assert jnp.isnan(ensembles.realised(twice)[5])
    for none in (W, across, signs, 0 * W, W[:, :1], W[:, :, :1]):
        assert jnp.all(jnp.isfinite(ensembles.realised(none)))
