"""Full matrix products wherever a chain is measured, whatever a device would do unasked."""

import re
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from gradlab.arithmetic import scaled
from gradlab.measuring import certificate, jacobians, spectra
from gradlab.models import chain, ensembles

MEASURES = {
    function.__name__: partial(function, **settings)
    for function, settings in (
        (chain.states, {}),
        (chain.jacobians, {}),
        (jacobians.product, {}),
        (jacobians.scaled_product, {}),
        (jacobians.along, {"measure": scaled.norm}),
        (jacobians.log_norms, {}),
        (jacobians.log_spectral_norms, {}),
        (jacobians.partial_products, {}),
        (jacobians.log_abs_det, {}),
        (jacobians.weight_gradient, {"loss": jnp.sum, "layer": 3}),
        (jacobians.weight_gradients, {"loss": jnp.sum}),
        (jacobians.log_gradient_norms, {"loss": jnp.sum}),
        (jacobians.log_weight_gradient_norms, {"loss": jnp.sum}),
        (spectra.singular_values, {"depths": (4,)}),
        (spectra.singular_vectors, {}),
        (spectra.lyapunov_exponents, {"burn_in": 0, "num_batches": 2}),
        (certificate.log_norm_bound, {}),
        (certificate.singular_value_bound, {"depths": (4,)}),
        (certificate.residuals, {}),
    )
} | {
    "derivative of log_norms": jax.grad(
        lambda model, x: jnp.sum(jax.jit(jacobians.log_norms)(model, x)), argnums=1
    )
}

FULL = "(Precision.HIGHEST, Precision.HIGHEST)"


def precisions(function: Any, *arguments: Any) -> Any:
    """Of every matrix product in a function's program, where the caller's own have few digits."""
    with jax.default_matmul_precision("bfloat16"):
        program = str(jax.make_jaxpr(function)(*arguments))
    return re.findall(r"\bprecision=(\w+|\(.*?\))", program)


@pytest.mark.parametrize("name", MEASURES)
def test_every_matrix_product_of_a_measurement_is_full(name: str) -> None:
    model = ensembles.gaussian(jax.random.key(0), 4, 20, jnp.tanh, 1.0, 0.1)
    model, x = jax.tree.map(lambda leaf: leaf.astype("float32"), (model, jnp.ones(20)))
    found = precisions(MEASURES[name], model, x)
    assert found
    assert set(found) == {FULL}


def test_that_of_scaled_matrices_is_too_and_without_that_it_would_not_be() -> None:
    s = scaled.scale(jnp.ones((20, 20), "float32"))
    assert precisions(scaled.matmul, s, s) == [FULL]
    assert precisions(jnp.matmul, s.mantissa, s.mantissa) != [FULL]
