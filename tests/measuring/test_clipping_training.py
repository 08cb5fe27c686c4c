"""The clip for training: random bit patterns in exact fractions, both branches, all derivatives."""

import os
import subprocess
import sys
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.measuring import clipping
from tests.measuring.test_clipping import bits, each_dtype, exact, exact_norm, ulp, wide

drawn = settings(derandomize=True, deadline=None, max_examples=150)
clip = jax.jit(clipping.clip)


def half_ulp(dtype: Any) -> float:
    return float(jnp.finfo(wide(dtype)).eps) / 2


@st.composite
def patterns(draw: Any, dtype: Any) -> tuple[dict[str, jax.Array], Any]:
    """Random bits, all finite, all exponents or some neighbours; a random tau, or one nearby."""
    info = jnp.finfo(dtype)
    integer = np.dtype(f"uint{info.bits}")
    top = draw(st.integers(1, 2**info.nexp - 2))
    spread = draw(st.sampled_from([0, 3, 40, 2**info.nexp]))
    exponents = st.integers(max(0, top - spread), top)
    signs, digits = st.integers(0, 1), st.integers(0, 2**info.nmant - 1)
    words = [
        (draw(signs) << (info.bits - 1)) | (draw(exponents) << info.nmant) | draw(digits)
        for _ in range(7)
    ]
    entries = np.array(words, integer).view(np.dtype(dtype))
    grads = {"W": jnp.asarray(entries[:6].reshape(2, 3)), "b": jnp.asarray(entries[6:])}
    largest = float(jnp.finfo(wide(dtype)).max)
    ratio = draw(st.floats(2**-8, 1.5)) * 2.0 ** draw(st.sampled_from([0, -20, -100, -250]))
    with np.errstate(under="ignore"):
        tau = np.dtype(wide(dtype)).type(min(float(exact_norm(grads) * ratio), largest))
    return grads, tau


@each_dtype
def test_random_bits_become_the_formula_to_its_stated_error(dtype: Any) -> None:
    @drawn
    @given(patterns(dtype))
    def check(case: Any) -> None:
        grads, tau = case
        if not tau > 0:
            return
        size, level = exact_norm(grads), mp.mpf(float(tau))
        clipped = clip(grads, tau)
        u = half_ulp(dtype)
        if size <= level * (1 - 8 * u):  # seven squares, a sum and a root
            assert bits(clipped) == bits(grads)
            return
        if bits(clipped) == bits(grads):
            assert size <= level * (1 + 8 * u)
            return
        for before, after in zip(exact(grads), exact(clipped), strict=True):
            right = abs(before) * level / size
            unit = ulp(right, dtype)
            is_cut = dtype != wide(dtype) or right < 2 * float(jnp.finfo(dtype).tiny)
            assert before * after >= 0
            # The factor is 8 u low, and its own roundings and those of the norm are less.
            assert right * (1 - 16 * u) - unit * is_cut <= abs(after) <= right
        assert exact_norm(clipped) <= level
        assert bits(clip(clipped, tau)) == bits(clipped)

    check()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("make", ["constant", "normal", "heavy", "sorted"])
def test_a_large_gradient_is_clipped_below_tau_once_for_all(dtype: Any, make: str) -> None:
    rng = np.random.default_rng(3)
    draws = {
        "constant": lambda: np.full(2**20, 0.1),
        "normal": lambda: rng.normal(size=2**20),
        "heavy": lambda: rng.standard_t(2, size=2**20),
        "sorted": lambda: np.sort(rng.normal(size=2**20)),
    }
    grads = jnp.asarray(draws[make](), jnp.float32).astype(dtype)
    once = clip(grads, np.float32(1.0))
    size = np.linalg.norm(np.asarray(once).astype(np.float64))
    assert size <= 1
    # In float32 the factor's 8 u and what the sum was off; in bfloat16 each entry up to an ulp.
    assert size >= (1 - 16 * 2.0**-24 if dtype == jnp.float32 else 1 - 2.0**-7)
    assert bits(clip(once, np.float32(1.0))) == bits(once)


@pytest.mark.verify
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_hundred_million_numbers_are_clipped_below_tau_once_for_all(dtype: Any) -> None:
    grads = jax.random.normal(jax.random.key(4), (10**8,), jnp.float32).astype(dtype)
    once = clip(grads, np.float32(1.0))
    parts = np.array_split(np.asarray(once), 100)
    size = np.sqrt(sum(float(np.sum(np.square(part.astype(np.float64)))) for part in parts))
    # The bound for any order of summing is (n/2 + 4) u, here 3; XLA's is within the factor's 8 u.
    assert size <= 1
    assert size >= (1 - 64 * 2.0**-24 if dtype == jnp.float32 else 1 - 2.0**-7)
    assert bool(jnp.all(clip(once, np.float32(1.0)) == once))


def test_a_mixed_tree_keeps_its_formats_and_takes_the_widest_for_its_norm() -> None:
    grads = {
        "a": jnp.array([3e4], jnp.float16),
        "b": jnp.array([1e-39, 4e4], jnp.bfloat16),
        "c": jnp.array([1e-44, 1.0], jnp.float32),
    }
    for tree in (grads, grads | {"d": jnp.array([1e-300])}):
        clipped = clip(tree, 5e3)
        assert [x.dtype for x in jax.tree.leaves(clipped)] == [
            x.dtype for x in jax.tree.leaves(tree)
        ]
        factor = 5e3 / float(exact_norm(tree))
        for (before, after), dtype in zip(
            zip(exact(tree), exact(clipped), strict=True),
            [jnp.float16, *[jnp.bfloat16] * 2, *[jnp.float32] * 2, jnp.float64],
            strict=False,
        ):
            right = before * factor
            # Cut to its format; in float32 16 u of the factor, the norm and the product.
            assert abs(after - right) <= ulp(right, dtype) + 16 * 2.0**-24 * abs(right)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_a_float8_leaf_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"leaf '\['W'\]' has dtype {name}; allowed: real .*float16"
    ):
        clipping.clip({"W": jnp.ones(2, name)}, 1.0)


# ---- derivatives


def closed_form(x: list[Fraction], tau: Fraction, norm: Fraction) -> list[list[float]]:
    """The Hessian of the sum of the entries of `x tau/|x|`."""
    n, total = len(x), sum(x)
    return [
        [
            float(
                tau
                * (3 * total * x[i] * x[j] / norm**5 - (x[i] + x[j] + total * (i == j)) / norm**3)
            )
            for j in range(n)
        ]
        for i in range(n)
    ]


@pytest.mark.parametrize("rule", [clipping.clip, clipping.formula])
@pytest.mark.parametrize(
    ("entries", "scale"), [((3, 4), 0), ((3, 4), 500), ((1, 2, 2), -600), ((2, -3, 6), 0)]
)
def test_the_hessian_is_that_of_the_formula_in_both_branches(
    rule: Any, entries: Any, scale: int
) -> None:
    x = [Fraction(entry) * Fraction(2) ** scale for entry in entries]
    norm = Fraction(round(sum(entry**2 for entry in entries) ** 0.5)) * Fraction(2) ** scale
    tau = norm / 5

    def total(leaf: jax.Array) -> jax.Array:
        return jnp.sum(rule([leaf], float(tau))[0])

    found = jax.jit(jax.hessian(total))(jnp.array([float(entry) for entry in x]))
    expected = np.array(closed_form(x, tau, norm))
    # A few dozen roundings of numbers of the size of the largest entry.
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 2.0**-53 * np.abs(expected).max())


@pytest.mark.parametrize("entries", [[0.0, 0.0], [0.3, 0.4]])
def test_the_hessian_of_what_is_not_clipped_is_zero(entries: list[float]) -> None:
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(clipping.clip([x], 1.0)[0])))
    np.testing.assert_array_equal(hessian(jnp.array(entries)), np.zeros((2, 2)))


def test_third_derivatives_agree_with_those_of_plain_jax() -> None:
    def plain(x: jax.Array) -> jax.Array:
        return jnp.sum(x / jnp.linalg.norm(x))

    def ours(x: jax.Array) -> jax.Array:
        return jnp.sum(clipping.clip([x], 1.0)[0])

    x = jnp.array([1.0, -2.0, 3.0])
    third = [jax.jit(jax.jacfwd(jax.jacrev(jax.jacfwd(f))))(x) for f in (plain, ours)]
    np.testing.assert_allclose(third[1], third[0], atol=1e-15)  # entries below 0.1, dozens of 2^-53


# ---- where it runs


def test_under_vmap_every_row_is_clipped_as_by_itself() -> None:
    rows = jnp.array([[3.0, 4.0], [3e-30, 4e-30], [3e30, 4e30], [0.1, 0.2]], jnp.float32)
    mapped = jax.jit(jax.vmap(lambda row: clipping.clip(row, 1e-31)))(rows)
    assert bits(mapped) == bits(jnp.stack([clip(row, 1e-31) for row in rows]))


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import PartitionSpec as P
from gradlab.measuring import clipping
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
rule = partial(clipping.clip, tau=1.0, axis_name="batch")
split = jax.jit(jax.shard_map(rule, mesh=mesh, in_specs=P("batch"), out_specs=P("batch")))
for scale in (1.0, 1e-30, 1e30, 1e-3):
    g = scale * jnp.arange(1.0, 9.0)
    whole, parts = jax.jit(clipping.clip)(g, 1.0), split(g)
    np.testing.assert_allclose(parts, whole, rtol=2.0**-20)
one = lambda g: jnp.sum(clipping.clip(g, 1.0))
many = lambda g: jnp.sum(split(g))
g = jnp.arange(1.0, 9.0)
np.testing.assert_allclose(jax.grad(many)(g), jax.grad(one)(g), atol=1e-6)
"""


def test_the_shards_of_a_gradient_are_clipped_by_one_norm() -> None:
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | devices | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("scale", [0.5, 1.0, 100.0])
def test_a_program_with_the_clip_of_optax_gives_the_same_to_rounding(scale: float) -> None:
    data = jax.random.normal(jax.random.key(0), (16, 4), jnp.float32) * scale
    params = {"W": jnp.ones((4, 3), jnp.float32), "b": jnp.zeros(3, jnp.float32)}

    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(data @ params["W"] + params["b"][None] - 1))

    def trained(make: Any) -> Any:
        optimizer = optax.chain(make(1.0), optax.sgd(0.1))

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), None, length=3)[0][0]

    ours, theirs = trained(clipping.clip_by_global_norm), trained(optax.clip_by_global_norm)
    for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        # 16 u a step of length 0.1, and what roundings grow to in three steps.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_gradient_cast_in_the_same_program_is_clipped_as_one_that_was_cast_before(
    dtype: Any,
) -> None:
    """A GPU's compiler may go on with the digits of before the cast, and clip by their norm."""
    wide = jnp.asarray(np.random.default_rng(5).uniform(1, 2, (64, 2)), jnp.float32)
    together = jax.jit(jax.vmap(lambda g: clipping.clip(g.astype(dtype), np.float32(1.0))))(wide)
    apart = jax.jit(jax.vmap(lambda g: clipping.clip(g, np.float32(1.0))))(wide.astype(dtype))
    assert bits(together) == bits(apart)
    assert all(exact_norm(row) <= 1 for row in together)


def test_no_pair_of_numbers_is_clipped_above_tau() -> None:
    """Two numbers leave little to a sum: what quotient and root are off is what is seen."""
    grads = jnp.asarray(np.random.default_rng(6).normal(size=(20_000, 2)), jnp.float32)
    once = jax.jit(jax.vmap(lambda g: clipping.clip(g, np.float32(0.01))))(grads)
    sizes = np.linalg.norm(np.asarray(once).astype(np.float64), axis=1)
    level = float(np.float32(0.01))
    fired = np.linalg.norm(np.asarray(grads).astype(np.float64), axis=1) > level
    assert (sizes <= level).all()
    assert (sizes[fired] >= level * (1 - 16 * 2.0**-24)).all()


def test_where_normal_numbers_begin_is_known_below_a_factor_that_is_no_float() -> None:
    """Large numbers, a tiny tau: the least factor, and results a little above the least normal."""
    for name, ratio in (("bfloat16", 1.9), ("float32", 1.0), ("float32", 1.9), ("float64", 1.9)):
        info = jnp.finfo(name)
        entries = jnp.full(7, float(info.max) / 8, name)
        tau = np.asarray(ratio * 7**0.5 * float(info.tiny), wide(jnp.dtype(name)))
        grads = {"W": entries[:6].reshape(2, 3), "b": entries[6:]}
        clipped = clip(grads, tau)
        right = mp.mpf(float(tau)) / mp.sqrt(7)
        for after in exact(clipped):
            # 16 u of the factor, and an ulp where the format is short.
            assert 0 <= 1 - after / right <= 9 * float(info.eps)
