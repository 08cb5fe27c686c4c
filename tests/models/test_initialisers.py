"""Each default against its law, and against the library that it is of."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gradlab.errors import BadInput
from gradlab.models import ensembles, initialisers
from gradlab.models.activations import PHI

KEY = jax.random.key(17)
NUM_IN, NUM_OUT = 60, 400

# A right law fails a test of Kolmogorov and Smirnov as rarely as this.
RARE = 1e-6


def law_of_weights(library: str) -> Any:
    """The distribution of W √n: uniform, or a normal cut at two of its deviations."""
    variance = initialisers.DEFAULTS[library].variance
    if initialisers.DEFAULTS[library].draw == "uniform":
        edge = math.sqrt(3 * variance)
        return stats.uniform(-edge, 2 * edge)
    return stats.truncnorm(-2, 2, scale=math.sqrt(variance / ensembles.TRUNCATED_VARIANCE))


def assert_drawn_from(library: str, weights: Any, biases: Any, num_in: int) -> None:
    found = np.ravel(np.asarray(weights, float)) * math.sqrt(num_in)
    assert stats.kstest(found, law_of_weights(library).cdf).pvalue > RARE
    edge = math.sqrt(3 * initialisers.DEFAULTS[library].bias_variance)
    if edge == 0:
        assert not np.any(biases)
        return
    scaled = np.ravel(np.asarray(biases, float)) * math.sqrt(num_in)
    assert stats.kstest(scaled, stats.uniform(-edge, 2 * edge).cdf).pvalue > RARE


@pytest.mark.parametrize("library", initialisers.DEFAULTS)
def test_layers_are_drawn_from_the_law_that_the_table_states(library: str) -> None:
    drawn = initialisers.affines(KEY, 3, NUM_OUT, NUM_IN, library)
    assert drawn.W.shape == (3, NUM_OUT, NUM_IN)
    assert drawn.b.shape == (3, NUM_OUT)
    assert_drawn_from(library, drawn.W, drawn.b, NUM_IN)

    law = law_of_weights(library)
    stated = initialisers.DEFAULTS[library]
    assert stated.variance == pytest.approx(float(law.var()), rel=1e-12)
    assert stated.excess == pytest.approx(float(law.stats("k")), rel=1e-9)
    sigma_w, sigma_b = initialisers.deviations(library, 50)
    assert sigma_w**2 == pytest.approx(stated.variance, rel=1e-15)
    assert sigma_b**2 * 50 == pytest.approx(stated.bias_variance, rel=1e-15)


def test_layers_are_independent_and_a_chain_is_of_them() -> None:
    model = initialisers.chain(KEY, 2, 100, PHI["tanh"], "Equinox")
    W, b = model.params
    for one, other in ((W[0].ravel(), W[1].ravel()), (b[0], b[1]), (W[0, :, 0], b[0])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(one.size)  # standard errors
    x = jnp.linspace(-1.0, 1.0, 100)
    expected = np.tanh(np.asarray(W[1]) @ np.tanh(np.asarray(W[0]) @ x + b[0]) + b[1])
    # Two sums of a hundred products, each right to eps of its terms.
    np.testing.assert_allclose(model(x), expected, atol=100 * 2**-52)


def test_the_cut_of_a_normal_has_the_moments_of_scipy() -> None:
    cut = stats.truncnorm(-2, 2)
    assert pytest.approx(float(cut.var()), rel=1e-12) == ensembles.TRUNCATED_VARIANCE
    assert pytest.approx(float(cut.stats("k")), rel=1e-9) == ensembles.TRUNCATED_EXCESS


def test_an_unknown_library_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BadInput, match="'Keras'; allowed: one of Flax, Haiku, Equinox, PyTorch"):
        initialisers.affines(KEY, 1, 2, 2, "Keras")
    with pytest.raises(BadInput, match="'Keras'"):
        initialisers.deviations("Keras", 2)


# ---- the libraries


def equinox() -> Any:
    layer = eqx.nn.Linear(NUM_IN, NUM_OUT, key=KEY)
    return layer.weight, layer.bias


def haiku() -> Any:
    import haiku as hk

    def forward(x: Any) -> Any:
        return hk.Linear(NUM_OUT)(x)

    params: Any = hk.transform(forward).init(KEY, jnp.ones(NUM_IN))
    drawn = params["linear"]
    return drawn["w"], drawn["b"]


def linen() -> Any:
    from flax import linen

    drawn = linen.Dense(NUM_OUT).init(KEY, jnp.ones(NUM_IN))["params"]
    return drawn["kernel"], drawn["bias"]


def nnx() -> Any:
    from flax import nnx

    layer: Any = nnx.Linear(NUM_IN, NUM_OUT, rngs=nnx.Rngs(3))
    return layer.kernel[...], layer.bias[...]


@pytest.mark.parametrize(
    ("library", "layer"),
    [
        ("Equinox", equinox),
        pytest.param("Haiku", haiku, marks=pytest.mark.verify),
        pytest.param("Flax", linen, marks=pytest.mark.verify),
        pytest.param("Flax", nnx, marks=pytest.mark.verify),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_library_draws_its_layer_from_the_law_of_the_table(
    library: str, layer: Callable[[], Any]
) -> None:
    assert initialisers.DEFAULTS[library].held
    with jax.numpy_rank_promotion("allow"):
        weights, biases = layer()
    assert weights.size == NUM_IN * NUM_OUT
    assert_drawn_from(library, weights, biases, NUM_IN)


def test_the_bound_in_pytorchs_source_is_that_of_the_table() -> None:
    # torch 2.14.1, torch/nn/init.py: std = gain/√fan, gain = √(2/(1 + a²)), bound = √3 std.
    bound = math.sqrt(3) * math.sqrt(2 / (1 + math.sqrt(5) ** 2))
    assert bound == pytest.approx(float(law_of_weights("PyTorch").support()[1]), rel=1e-15)
