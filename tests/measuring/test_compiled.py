from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import chain_rule, compiled, jacobians
from gradlab.models import chain
from gradlab.models.activations import PHI


def matrices(seed: int, num: int = 2) -> Any:
    return np.random.default_rng(seed).normal(size=(num, 3, 3))


def counted() -> tuple[Any, list[None]]:
    """A public function, and as many Nones as it has been gone through for a compilation."""
    traces: list[None] = []

    @compiled.once
    def norms(model: Any, x: Any, factor: int) -> Any:
        traces.append(None)
        return factor * jacobians.log_norms(model, x)

    return norms, traces


def test_models_of_one_structure_share_a_program_and_keep_their_own_arrays() -> None:
    norms, traces = counted()
    x, phi = jnp.ones(3), PHI["tanh"]
    for seed in range(3):
        W = matrices(seed)
        closures = [lambda z, W=W[k]: phi(W @ z) for k in range(2)]
        J = chain_rule.products(closures, x).jacobians
        expected = np.log([np.linalg.norm(J[0]), np.linalg.norm(J[1] @ J[0])])
        np.testing.assert_allclose(norms(closures, x, 1), expected, rtol=1e-12)
    assert len(traces) == 1
    norms(closures, x, 2)
    norms([lambda z: phi(W[0] @ z)] * 3, x, 1)
    assert len(traces) == 3


def test_no_array_that_has_changed_and_no_number_is_remembered() -> None:
    norms, _ = counted()
    W, factor = np.eye(3), 2.0

    def layer(z: Any) -> Any:
        return factor * (W @ z)

    first = norms([layer], jnp.ones(3), 1)
    W[:] *= 3.0
    np.testing.assert_allclose(norms([layer], jnp.ones(3), 1) - first, np.log(3), rtol=1e-12)
    factor = 4.0
    np.testing.assert_allclose(norms([layer], jnp.ones(3), 1) - first, np.log(6), rtol=1e-12)


def test_functions_that_differ_in_their_derivatives_alone_are_two() -> None:
    norms, traces = counted()

    def times(factor: float) -> Any:
        same = jax.custom_jvp(lambda z: z)
        same.defjvps(lambda tangent, _, __: factor * tangent)
        return same

    logs = np.array([norms([times(f)], jnp.ones(3), 1)[0] for f in (1.0, 1.0, 5.0)])
    np.testing.assert_allclose(logs - logs[0], [0, 0, np.log(5)], atol=1e-12)
    assert len(traces) == 2


def test_inside_a_transformation_a_function_is_as_it_was_written() -> None:
    W = jnp.asarray(matrices(0))

    def run(W: Any) -> Any:
        return jacobians.log_norms(chain.linear(W), jnp.ones(3))[-1]

    def plain(W: Any) -> Any:
        return jnp.log(jnp.linalg.norm(W[1] @ W[0]))

    found, expected = (jax.jit(jax.grad(f))(W) for f in (run, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run(W), plain(W), rtol=1e-12)


def test_a_wrong_model_is_refused_as_before() -> None:
    with pytest.raises(ValueError, match="does not take a state"):
        jacobians.log_norms([lambda z: jnp.ones((2, 2)) @ z], jnp.ones(3))
