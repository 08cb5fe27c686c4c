"""A loop over a segment is Python's own loop; `unless` is a conditional that copies nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.measuring import loops
from gradlab.models.chain import Chain


def affine(params: Any, z: Any) -> Any:
    return params["w"] * z + params["b"]


def segment(depth: int) -> Chain:
    w, b = np.random.default_rng(0).normal(size=(2, depth))
    return Chain(affine, {"w": jnp.asarray(w), "b": jnp.asarray(b)})


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_goes_through_the_layers_in_order_and_stacks_what_it_sees(
    depth: int, reverse: bool
) -> None:
    own = segment(depth)

    def step(carry: Any, params: Any) -> Any:
        return affine(params, carry), (carry, params["w"])

    end, (seen, w) = loops.scan(step, jnp.asarray(1.5), own, reverse)
    layers = range(depth - 1, -1, -1) if reverse else range(depth)
    z, states = 1.5, np.zeros(depth)
    for k in layers:
        states[k] = z
        z = float(own.params["w"][k]) * z + float(own.params["b"][k])
    # A product and a sum a layer, and what rounding they amplify; |w| stays below 3.
    np.testing.assert_allclose(end, z, rtol=1e-14)
    np.testing.assert_allclose(seen, states, rtol=1e-14)
    np.testing.assert_array_equal(w, own.params["w"])


def test_one_layer_alone_may_change_the_shape_of_what_is_carried() -> None:
    own = Chain(lambda W, z: W @ z, jnp.ones((1, 3, 2)))
    end, seen = loops.scan(lambda z, W: (W @ z, jnp.sum(z)), jnp.asarray([1.0, 2.0]), own)
    np.testing.assert_array_equal(end, [3.0, 3.0, 3.0])
    np.testing.assert_array_equal(seen, [3.0])


def costly(x: Any) -> Any:
    return {"a": 2 * x["a"], "n": x["n"] + 1}


@pytest.mark.parametrize("done", [True, False])
def test_unless_does_the_other_thing_once_or_not_at_all(done: bool) -> None:
    x = {"a": jnp.asarray([1.0, jnp.inf, jnp.nan]), "n": jnp.asarray(4)}
    got = jax.jit(loops.unless, static_argnums=2)(jnp.asarray(done), x, costly)
    np.testing.assert_array_equal(got["a"], x["a"] if done else [2.0, np.inf, np.nan])
    assert int(got["n"]) == (4 if done else 5)


def test_unless_chooses_for_each_entry_of_a_batch_and_has_a_derivative_forwards() -> None:
    def choose(done: Any, x: Any) -> Any:
        return loops.unless(done, x, lambda v: v**2)

    done, x = jnp.asarray([True, False, True]), jnp.asarray([3.0, 5.0, 7.0])
    np.testing.assert_array_equal(jax.vmap(choose)(done, x), [3.0, 25.0, 7.0])
    for flag, slope in ((True, 1.0), (False, 10.0)):
        along = jax.jvp(lambda v, flag=flag: choose(jnp.asarray(flag), v), (x[1],), (1.0,))[1]
        assert float(along) == slope
