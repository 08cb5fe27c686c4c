"""The clipping formula against arbitrary precision, its edges, optax beside it."""

import math
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

mp.mp.prec = 400  # 16 entries of 53 bits, squared and rooted, with much to spare

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
drawn = settings(derandomize=True, deadline=None, max_examples=60)

# Compiled once for each dtype and shape.
formula = jax.jit(clipping.formula)
clip = jax.jit(clipping.clip)
norm = jax.jit(clipping.norm)
cosine = jax.jit(clipping.cosine)
shares = jax.jit(clipping.shares)
compare = jax.jit(clipping.compare)
compare_static = jax.jit(clipping.compare, static_argnums=1)


def wide(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def slack(dtype: Any) -> Any:
    """2^14 u², the documented excess, relative."""
    return mp.mpf(2) ** (14 - 2 * (jnp.finfo(wide(dtype)).nmant + 1))


def exact(tree: Any) -> list[Any]:
    """All entries, as numbers without rounding."""
    leaves = [np.asarray(leaf).astype(np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return [mp.mpf(float(value)) for leaf in leaves for value in leaf]


def exact_norm(tree: Any) -> Any:
    return mp.sqrt(mp.fsum(value**2 for value in exact(tree)))


def ulp(value: Any, dtype: Any) -> Any:
    """The distance of neighbours of `dtype` at an exact value."""
    info = jnp.finfo(dtype)
    exponent = mp.frexp(value)[1] - 1 if value else int(info.minexp)
    return mp.mpf(2) ** (max(exponent, int(info.minexp)) - info.nmant)


def bits(tree: Any) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@st.composite
def gradients(draw: Any, dtype: Any) -> dict[str, jax.Array]:
    """Two leaves over the whole range of the dtype, zeros and subnormal numbers included."""
    info = jnp.finfo(dtype)
    lowest = int(info.minexp) - info.nmant
    top = draw(st.integers(lowest, int(info.maxexp) - 2))
    spread = draw(st.sampled_from([0, 4, 30, 2000]))
    digits = st.integers(-(2**info.nmant), 2**info.nmant)
    exponents = st.integers(max(lowest, top - spread), top)
    values = [
        math.ldexp(draw(digits), draw(exponents) - info.nmant) if draw(st.integers(0, 9)) else 0.0
        for _ in range(7)
    ]
    with np.errstate(under="ignore"):
        entries = np.array(values).astype(np.dtype(dtype))
    return {"W": jnp.asarray(entries[:6].reshape(2, 3)), "b": jnp.asarray(entries[6:])}


@st.composite
def cases(draw: Any, dtype: Any) -> tuple[dict[str, jax.Array], Any]:
    """A gradient and a threshold between far below and somewhat above its norm."""
    grads = draw(gradients(dtype))
    ratio = draw(st.floats(2**-8, 1.5)) * 2.0 ** draw(st.sampled_from([0, 0, -20, -100]))
    with np.errstate(over="ignore", under="ignore"):
        tau = np.dtype(wide(dtype)).type(float(exact_norm(grads)) * ratio)
    return grads, tau


# ---- the contract


@each_dtype
def test_every_entry_is_the_exact_formula_rounded_toward_zero(dtype: Any) -> None:
    @drawn
    @given(cases(dtype))
    def check(case: Any) -> None:
        grads, tau = case
        factor = mp.mpf(float(tau)) / max(exact_norm(grads), mp.mpf(float(tau)), mp.mpf(10) ** -400)
        for before, after in zip(exact(grads), exact(formula(grads, tau)), strict=True):
            low = abs(before * factor) - abs(after)
            # At the top end: the documented slack, in the excess and in what is not clipped.
            assert -2 * slack(dtype) * abs(after) <= low
            assert low < ulp(before * factor, dtype) * (1 + 2**-8)  # 2^-9 ulp is the slack
            assert before * after >= 0

    check()


@each_dtype
def test_the_norm_is_never_above_tau(dtype: Any) -> None:
    @drawn
    @given(cases(dtype))
    def check(case: Any) -> None:
        grads, tau = case
        assert exact_norm(formula(grads, tau)) <= mp.mpf(float(tau)) * (1 + slack(dtype))

    check()


@each_dtype
def test_clipping_twice_is_clipping_once_bit_for_bit(dtype: Any) -> None:
    @drawn
    @given(cases(dtype))
    def check(case: Any) -> None:
        grads, tau = case
        once = formula(grads, tau)
        assert bits(formula(once, tau)) == bits(once)

    check()


@each_dtype
def test_a_gradient_within_the_threshold_keeps_every_bit(dtype: Any) -> None:
    @drawn
    @given(gradients(dtype), st.floats(1, 1e6))
    def check(grads: Any, ratio: float) -> None:
        with np.errstate(over="ignore"):
            tau = np.dtype(wide(dtype)).type(float(exact_norm(grads)) * ratio)
        tau = np.nextafter(tau, np.inf, dtype=tau.dtype)  # the norm itself was rounded
        assert bits(formula(grads, tau)) == bits(grads)

    check()


@each_dtype
def test_the_norm_is_less_than_an_ulp_low(dtype: Any) -> None:
    @drawn
    @given(gradients(dtype))
    def check(grads: Any) -> None:
        low = exact_norm(grads) - mp.mpf(float(norm(grads)))
        unit = ulp(exact_norm(grads), wide(dtype))
        assert -unit * 2**-9 <= low < unit * (1 + 2**-9)  # 2^-9 ulp: the slack

    check()


@each_dtype
@pytest.mark.parametrize("exponent", [-20, 0, 9])
@pytest.mark.parametrize("entries", [(3, 4), (1, 2, 2), (2, 3, 6), (1, 4, 8), (2, 6, 9), (5,)])
def test_a_norm_of_exactly_tau_keeps_every_bit(dtype: Any, exponent: int, entries: Any) -> None:
    grads = jnp.array(entries, dtype) * dtype(2.0**exponent)
    tau = math.isqrt(sum(entry**2 for entry in entries)) * 2.0**exponent
    assert bits(clip(grads, tau)) == bits(grads)


@each_dtype
def test_one_entry_alone_becomes_the_threshold_itself(dtype: Any) -> None:
    values = jnp.array([0.1, 0.3, 7, 1e4], dtype)
    tau = float(dtype(0.05))
    clipped = [formula(jnp.array([value]), tau)[0] for value in values]
    assert bits(clipped) == bits([dtype(0.05)] * 4)


def test_a_large_gradient_is_summed_without_loss() -> None:
    grads = jax.random.uniform(jax.random.key(1), (2**20,), jnp.float32)
    true = math.sqrt(math.fsum(np.asarray(grads, np.float64) ** 2))  # fsum: one rounding
    assert true * (1 - 2.0**-23) <= float(norm(grads)) <= true


def test_leaves_of_several_dtypes_are_clipped_by_one_factor_and_keep_their_dtypes() -> None:
    grads = {"half": jnp.full(3, 40000.0, jnp.float16), "double": jnp.array([1e-3, 2.0])}
    tau = 1000.0
    factor = tau / math.sqrt(3 * 40000.0**2 + 1e-6 + 4)
    clipped = formula(grads, tau)
    assert {name: leaf.dtype for name, leaf in clipped.items()} == {
        name: leaf.dtype for name, leaf in grads.items()
    }
    np.testing.assert_allclose(clipped["half"], 40000 * factor, rtol=2**-10)  # one ulp
    np.testing.assert_allclose(clipped["double"], np.array([1e-3, 2]) * factor, rtol=2**-51)


@pytest.mark.parametrize("tree", [{}, [], (None,)])
def test_a_tree_without_leaves_has_norm_zero_and_stays(tree: Any) -> None:
    assert norm(tree) == 0
    assert clip(tree, 1.0) == tree


def test_thresholds_can_be_mapped_over() -> None:
    grads = jnp.array([3.0, 4.0], jnp.float32)
    taus = jnp.array([0.5, 5.0, 50.0, jnp.inf], jnp.float32)
    mapped = jax.jit(jax.vmap(clipping.clip, (None, 0)))(grads, taus)
    assert bits(mapped) == bits(jnp.stack([clip(grads, tau) for tau in taus]))


def test_without_float64_the_arithmetic_is_right_in_float32() -> None:
    with jax.enable_x64(False):
        clipped = formula(jnp.array([3e30, 4e30], jnp.float32), 5e-30)
    low = 1 - np.asarray(clipped, np.float64) / np.array([3e-30, 4e-30])
    assert np.all(np.abs(low) < 4 * 2.0**-24)  # rounding of 3e30, 4e30, 5e-30 and the result


# ---- the edges of the range


@pytest.mark.parametrize(
    ("entries", "tau", "expected", "dtype"),
    [
        ([1e-30], 1e-25, [1e-30], jnp.float32),
        ([3e20, 4e20], 5.0, [3.0, 4.0], jnp.float32),
        ([3e-30, 4e-30], 5e-33, [3e-33, 4e-33], jnp.float32),
        ([3e38, 0.0], 3e-38, [3e-38, 0.0], jnp.float32),
        ([3e200, 4e200], 5e-200, [3e-200, 4e-200], jnp.float64),
        ([300.0] * 4, 1.0, [0.5] * 4, jnp.float16),
        ([1.0] * 1024, 1.0, [1 / 32] * 1024, jnp.bfloat16),
        ([1e-40, 0.0], 1e-41, [1e-41, 0.0], jnp.float32),
        ([1e-310, 0.0], 1e-312, [1e-312, 0.0], jnp.float64),
        ([60000.0, 60000.0], 60000.0, [42426.4, 42426.4], jnp.float16),
    ],
)
def test_the_formula_is_right_where_plain_arithmetic_leaves_the_range(
    entries: list[float], tau: float, expected: list[float], dtype: Any
) -> None:
    threshold = np.dtype(wide(dtype)).type(tau)
    clipped = exact(formula(jnp.asarray(np.array(entries, np.dtype(dtype))), threshold))
    for value, wanted in zip(clipped, expected, strict=True):
        # Decimal numbers are rounded to the dtype before they are clipped: two ulps more.
        assert abs(value - wanted) <= 3 * ulp(mp.mpf(wanted), dtype)


@each_dtype
def test_a_zero_gradient_stays_zero(dtype: Any) -> None:
    grads = jnp.array([0.0, -0.0], dtype)
    assert bits(clip(grads, 1e-3)) == bits(grads)
    assert bits(clipping.formula(grads, 0.0)) == bits(grads)


@each_dtype
def test_an_infinite_entry_gives_nan_there_and_the_limit_zero_elsewhere(dtype: Any) -> None:
    clipped = clip(jnp.array([jnp.inf, 1, -jnp.inf], dtype), 1.0)
    np.testing.assert_array_equal(np.asarray(clipped, np.float32), [np.nan, 0, np.nan])
    assert norm(jnp.array([1, -jnp.inf], dtype)) == jnp.inf


@each_dtype
def test_a_nan_anywhere_is_a_nan_everywhere(dtype: Any) -> None:
    clipped = clip({"W": jnp.array([jnp.nan, jnp.inf], dtype), "b": jnp.ones(1)}, 1.0)
    assert all(bool(jnp.all(jnp.isnan(leaf))) for leaf in clipped.values())
    assert jnp.isnan(norm(jnp.array([jnp.nan, jnp.inf], dtype)))


def test_an_infinite_threshold_never_clips() -> None:
    grads = jnp.array([jnp.inf, 3e38, 3e38], jnp.float32)
    assert bits(clip(grads, jnp.inf)) == bits(grads)


def test_a_norm_above_the_range_is_infinite_and_still_clipped_rightly() -> None:
    grads = jnp.full(4, 3e38, jnp.float32)
    assert norm(grads) == jnp.inf
    np.testing.assert_allclose(formula(grads, 1.0), 0.5, rtol=2**-23)  # one ulp


@pytest.mark.parametrize(("tau", "expected"), [(0.0, 0.0), (-1.0, np.nan), (np.nan, np.nan)])
def test_a_traced_threshold_that_is_none_is_not_masked(tau: float, expected: float) -> None:
    clipped = clip(jnp.array([3.0, 4.0]), tau)
    np.testing.assert_array_equal(clipped, [expected] * 2)


# ---- derivatives


def closed_form(grads: jax.Array, tau: float) -> tuple[jax.Array, jax.Array]:
    """The derivatives of g tau / |g| by g and tau."""
    size = jnp.sqrt(jnp.sum(grads**2))
    unit = grads / size
    return tau / size * (jnp.eye(grads.size) - jnp.outer(unit, unit)), unit


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
def test_the_derivative_of_a_clipped_gradient_is_that_of_the_formula(mode: Any) -> None:
    grads = jnp.array([1.0, -2.0, 3.0, 0.5])
    by_grads, by_tau = jax.jit(mode(clipping.clip, argnums=(0, 1)))(grads, 0.7)
    expected = closed_form(grads, 0.7)
    # Entries are at most 0.2; their sums round at 2^-53 a few times.
    np.testing.assert_allclose(by_grads, expected[0], atol=4 * 2.0**-53)
    np.testing.assert_allclose(by_tau, expected[1], atol=4 * 2.0**-53)


@pytest.mark.parametrize("grads", [[0.0, 0.0], [3.0, 4.0], [0.1, 0.0]])
def test_the_derivative_within_the_threshold_is_the_identity_at_zero_too(
    grads: list[float],
) -> None:
    by_grads, by_tau = jax.jit(jax.jacrev(clipping.clip, argnums=(0, 1)))(jnp.array(grads), 5.0)
    np.testing.assert_array_equal(by_grads, np.eye(2))
    np.testing.assert_array_equal(by_tau, 0)


def test_the_derivative_is_right_where_squares_underflow() -> None:
    grads = jnp.array([3e-30, 4e-30], jnp.float32)
    by_grads = jax.jit(jax.jacrev(clipping.clip))(grads, 1e-31)
    expected = closed_form(jnp.array([3e-30, 4e-30]), 1e-31)[0]
    np.testing.assert_allclose(by_grads, expected, atol=4 * 0.02 * 2.0**-24)  # roundings of 0.02


def test_the_derivative_of_the_norm_is_the_direction_and_0_at_0() -> None:
    np.testing.assert_allclose(
        jax.jit(jax.grad(clipping.norm))(jnp.array([3.0, 4.0])), [0.6, 0.8], 2**-52
    )
    np.testing.assert_array_equal(jax.jit(jax.grad(clipping.norm))(jnp.zeros(2)), 0)


# ---- the door


@pytest.mark.parametrize(
    "make", [lambda tau: clipping.clip(jnp.ones(2), tau), clipping.clip_by_global_norm]
)
@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, -math.inf])
def test_a_threshold_that_is_not_above_0_is_refused(make: Any, tau: float) -> None:
    with pytest.raises(ValueError, match=rf"tau is {tau}; allowed: a number above 0"):
        make(tau)


def test_several_thresholds_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tau has shape \(2,\); allowed: one number above 0"):
        clipping.clip(jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_a_leaf_that_is_not_real_and_floating_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(TypeError, match=rf"leaf '\['W'\]' has dtype {dtype}; allowed: real"):
        clipping.clip({"W": jnp.ones(2, dtype)}, 1.0)


# ---- optax


def test_it_takes_the_place_of_the_clip_of_optax_in_a_chain() -> None:
    grads = {"W": jnp.array([[3.0, 0.0]]), "b": jnp.array([4.0])}
    results = []
    for make in (clipping.clip_by_global_norm, optax.clip_by_global_norm):
        optimizer = optax.chain(make(1.0), optax.sgd(0.5, momentum=0.9))
        state = optimizer.init(grads)
        for _ in range(3):
            updates, state = jax.jit(optimizer.update)(grads, state, grads)
        results.append(updates)
    structures: list[Any] = [jax.tree.structure(result) for result in results]
    assert structures[0] == structures[1]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * 2.0**-53)  # a few roundings each


def test_neighbouring_floats_are_one_ulp_apart_across_zero_too() -> None:
    tiny = np.float32(1e-45)
    one = jnp.array([1.0, tiny, 0.0, 1.0, jnp.nan, jnp.nan], jnp.float32)
    other = jnp.array([np.nextafter(np.float32(1), 2), -tiny, -0.0, -1.0, jnp.nan, 1.0])
    expected = [1, 2, 0, 2 * 127 * 2.0**23, 0, np.inf]
    np.testing.assert_array_equal(clipping.ulps(one, other.astype(jnp.float32)), expected)


f16, bf16, f32 = jnp.float16, jnp.bfloat16, jnp.float32


@pytest.mark.parametrize(
    ("grads", "tau", "cause"),
    [
        (jnp.array([3, 4], f32), 5.0, "none"),
        (jnp.array([jnp.nan, 4], f32), 5.0, "none"),
        (jnp.array([jnp.inf, 4], f32), 5.0, "none"),
        (jnp.array([jnp.inf, 4], f32), math.inf, "infinite leaf"),
        (jnp.zeros(2, f32), 0.0, "zero at tau = 0"),
        (jnp.array([1e20, 1e20], f32), 1.0, "norm overflow"),
        (jnp.array([300, 300], f16), 1.0, "norm overflow"),
        ({"W": jnp.full(3, 1e5, f32), "b": jnp.ones(1, f16)}, 1.0, "norm overflow"),
        (jnp.array([1e-25, 0], f32), 1e-26, "norm underflow"),
        (
            {"W": jnp.full(3, 1e-9, f32), "b": jnp.full(1, 1e-7, f16)},
            1e-10,
            "threshold out of range",
        ),
        (jnp.array([6e4, 6e4], f16), 7e4, "norm overflow"),
        (jnp.array([200, 100], f16), 1e5, "none"),
        (jnp.arange(20, dtype=bf16), 1.0, "low-precision accumulation"),
        (jnp.array([1.1, 2.7], f16), 1.0, "low-precision accumulation"),
        (jnp.array([6.6, 7.9], f32), 10.294173, "one-ulp corner at equality"),
        (jnp.array([1e-38, 1.0], f32), 0.1, "entry underflow"),
        (jnp.array([3.0, 5.0], f32), 1.0, "rounding"),
    ],
)
def test_every_disagreement_with_optax_has_a_named_cause(
    grads: Any, tau: float, cause: str
) -> None:
    # optax takes leaves of two dtypes only with a threshold that is not traced.
    result = (compare_static if isinstance(grads, dict) else compare)(grads, tau)
    assert list(clipping.CAUSES)[int(result.cause)] == cause
    assert (cause == "none") == (result.max_ulps == 0) == (result.num_disagree == 0)
    assert (cause == "none") == (result.first < 0)


def test_a_rounding_disagreement_is_of_one_or_two_ulps_and_keeps_the_direction() -> None:
    result = compare(jnp.array([3.0, 5.0], f32), 1.0)
    assert 1 <= result.max_ulps <= 2
    # Sums of rounded products of unit vectors.
    assert result.cosine_optax == pytest.approx(1, abs=4 * 2.0**-24)
    assert result.cosine_formula == pytest.approx(1, abs=4 * 2.0**-24)
    assert result.norm_formula <= 1


def test_the_comparison_is_the_same_for_a_traced_threshold() -> None:
    grads = jnp.array([1e20, 1e20], f32)
    traced, static = compare(grads, 1.0), compare_static(grads, 1.0)
    assert bits(traced) == bits(static)


def test_a_traced_threshold_for_leaves_of_several_dtypes_is_refused() -> None:
    grads = {"W": jnp.ones(1, f32), "b": jnp.ones(1, f16)}
    with pytest.raises(TypeError, match=r"tau is traced and the leaves have dtypes .*one dtype"):
        compare(grads, 1.0)


def test_the_explanation_names_the_first_entry_and_the_cause() -> None:
    text = clipping.explain({"a": jnp.zeros(3, f32), "b": jnp.array([0.0, 1e20], f32)}, 1.0)
    assert "first entry 1 of ['b']: norm overflow" in text
    assert "agree" in clipping.explain(jnp.array([3.0, 4.0], f32), 5.0)


def test_the_cosine_is_right_over_the_whole_range_and_nan_for_zero() -> None:
    one, other = jnp.array([1e30, 1e30], f32), jnp.array([1e-30, 0.0], f32)
    # Two roundings of the unit vectors and one of the product.
    assert cosine(one, other) == pytest.approx(math.sqrt(0.5), rel=4 * 2.0**-24)
    assert jnp.isnan(cosine(one, jnp.zeros(2, f32)))


def test_the_squares_of_all_shares_add_up_to_one() -> None:
    key_a, key_b = jax.random.split(jax.random.key(2))
    grads = {"a": jax.random.normal(key_a, (5, 4)), "b": 3 * jax.random.normal(key_b, (2,))}
    total = sum(share**2 for share in jax.tree.leaves(shares(grads)))
    assert total == pytest.approx(1, rel=8 * 2.0**-53)  # two norms and a quotient each


def test_a_tree_without_leaves_is_explained() -> None:
    assert "agree" in clipping.explain({}, 1.0)


def test_log_norms_after_are_those_of_the_clipped_parts() -> None:
    parts = [jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])]
    logs = jnp.log(jnp.array([3.0, 4.0]))
    for tau in (1.0, 5.0, 100.0):
        clipped = [jnp.linalg.norm(leaf) for leaf in clipping.formula(parts, tau)]
        np.testing.assert_allclose(
            clipping.log_norms_after(logs, tau), jnp.log(jnp.array(clipped)), atol=1e-14
        )
    # Beyond a float: e^2000 and e^1999 together are clipped to 1.
    after = clipping.log_norms_after(jnp.array([2000.0, 1999.0]), 1.0)
    expected = np.array([0.0, -1.0]) - np.log1p(np.exp(-2.0)) / 2
    np.testing.assert_allclose(after, expected, atol=1e-12)
