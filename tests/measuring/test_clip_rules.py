"""The rules of other libraries, by hand, and the threshold that follows the norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import clip_rules

TAU = jnp.asarray(1.0, jnp.float32)


def after(name: str, entries: list[float], dtype: str = "float32") -> np.ndarray:
    (leaf,) = clip_rules.RULES[name].apply([jnp.asarray(entries, dtype)], TAU)
    return np.asarray(leaf.astype(jnp.float32))


@pytest.mark.parametrize("name", clip_rules.RULES)
def test_every_rule_brings_a_plain_gradient_to_its_length_and_keeps_a_short_one(name: str) -> None:
    scale = {"optax value": 1.25, "optax block rms": np.sqrt(2)}.get(name, 1.0)
    expected = [1.0, 1.0] if name == "optax value" else [0.6 * scale, 0.8 * scale]
    # PyTorch's 1e-6 and the digits of bfloat16, in which 25 is exact.
    np.testing.assert_allclose(after(name, [3.0, 4.0]), expected, rtol=1e-6)
    np.testing.assert_array_equal(after(name, [0.3, 0.4]), np.array([0.3, 0.4], np.float32))


def test_pytorch_divides_by_a_millionth_more_than_the_norm() -> None:
    # By the documentation of torch.nn.utils.clip_grad_norm_: 1e-6 of 5e-6 is a sixth less.
    (leaf,) = clip_rules.torch([jnp.asarray([3e-6, 4e-6])], jnp.asarray(1e-6))
    np.testing.assert_allclose(leaf, [5e-7, 4e-6 / 6], rtol=1e-6)


def test_a_sentinel_of_minus_one_negates_the_gradient() -> None:
    found = after("sentinel of -1", [3e20, 4e20])
    np.testing.assert_allclose(found, [-3e20, -4e20], rtol=1e-5)  # the rule's own 1e-6


def test_tensorflow_makes_nan_of_all_where_the_norm_is_not_finite() -> None:
    assert np.isnan(after("TensorFlow", [np.inf, 1.0])).all()


def test_ones_added_up_in_bfloat16_stop_at_256() -> None:
    found = after("norm in bfloat16", [1.0] * 1000, "bfloat16")
    np.testing.assert_array_equal(found, np.full(1000, 1 / 16))


@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_running_quantile_is_that_of_the_norms_before(part: float) -> None:
    norms = np.exp(np.random.default_rng(1).normal(size=60))
    rule = clip_rules.by_quantile(part, norms.size)

    def step(state: object, size: jax.Array) -> tuple[object, jax.Array]:
        clipped, state = rule.update(size[None], state)
        return state, clipped[0]

    _, found = jax.lax.scan(step, rule.init(norms), jnp.asarray(norms))
    before = [
        np.quantile(norms[:n], part, method="inverted_cdf") if n else np.inf
        for n in range(norms.size)
    ]
    # The clip is at most 16 u low.
    np.testing.assert_allclose(found, np.minimum(norms, before), rtol=16 * 2.0**-53)
