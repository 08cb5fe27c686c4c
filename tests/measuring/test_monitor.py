"""The monitor of a clip: it changes nothing, its numbers are those of a run recorded in full."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gradlab.measuring import clipping, histogram, leaf_norms
from tests.measuring.test_clipping import DTYPES, bits, exact_norm, wide

f32 = jnp.float32


def steps(transformation: Any, gradients: list[Any]) -> tuple[list[Any], Any]:
    state = transformation.init(gradients[0])
    update = jax.jit(transformation.update, donate_argnums=1)
    results = []
    for grads in gradients:
        updates, state = update(grads, state)
        results.append(updates)
    return results, state


SICK = [
    {"first": jnp.full(4, 1e-30, f32), "last": jnp.array([3.0, 4.0], f32) * scale}
    for scale in (0.1, 1.0, 10.0, 0.2, 100.0)
]
NAN = {"first": jnp.array([1.0, jnp.nan, jnp.inf, 1.0], f32), "last": jnp.ones(2, f32)}
# Squares, sums and roots; ours is 8 u low, optax within an ulp or two.
ROUNDING = 16 * 2.0**-24


@pytest.mark.parametrize("make", [clipping.clip_by_global_norm, optax.clip_by_global_norm])
@pytest.mark.parametrize("tau", [5.5, math.inf])
def test_the_monitor_changes_nothing_bit_for_bit(make: Any, tau: float) -> None:
    watched, state = steps(clipping.monitor(make(tau), 10), [*SICK, NAN])
    plain, _ = steps(make(tau), [*SICK, NAN])
    assert bits(watched) == bits(plain)
    assert clipping.record(state).num_steps == 6


@pytest.mark.parametrize("make", [clipping.clip_by_global_norm, optax.clip_by_global_norm])
def test_the_monitor_counts_how_often_the_threshold_fired(make: Any) -> None:
    _, state = steps(clipping.monitor(make(5.5), 10), SICK)
    seen = clipping.record(state)
    assert (seen.num_steps, seen.num_fired) == (5, 2)
    np.testing.assert_allclose(seen.norm_before, [0.5, 5, 50, 1, 500], rtol=ROUNDING)
    np.testing.assert_allclose(seen.norm_after, [0.5, 5, 5.5, 1, 5.5], rtol=ROUNDING)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_the_norm_behind_a_clip_of_ours_is_told_to_the_clips_own_error(dtype: Any) -> None:
    rng = np.random.default_rng(11)
    gradients = [
        {"W": jnp.asarray(rng.normal(size=(40, 9)) * scale, dtype), "b": jnp.ones(3, dtype)}
        for scale in (0.01, 1.0, 30.0)
    ]
    results, state = steps(clipping.monitor(clipping.clip_by_global_norm(2.0), 3), gradients)
    seen, u = clipping.record(state), float(jnp.finfo(wide(dtype)).eps) / 2
    for told, after in zip(seen.norm_after, results, strict=True):
        true = float(exact_norm(after))
        assert true * (1 - 8 * u) <= told <= true * (1 + 16 * u)
    assert (seen.norm_after[1:] <= 2.0).all()


def test_the_share_of_a_starved_layer_is_recorded_and_untouched_by_clipping() -> None:
    _, state = steps(clipping.monitor(clipping.clip_by_global_norm(5.5), 10), SICK)
    share = clipping.record(state).share
    # The squares of the starved layer are lost from a plain sum, and so looked at again.
    expected = [2e-30 / (5 * scale) for scale in (0.1, 1, 10, 0.2, 100)]
    np.testing.assert_allclose(share["['first']"], expected, rtol=ROUNDING)
    np.testing.assert_allclose(share["['last']"], 1, rtol=ROUNDING)
    for grads in SICK:
        before, after = (clipping.shares(g) for g in (grads, clipping.clip(grads, 5.5)))
        np.testing.assert_allclose(after["first"], before["first"], rtol=ROUNDING)


def test_the_monitor_keeps_the_last_steps_in_their_order() -> None:
    _, state = steps(clipping.monitor(clipping.clip_by_global_norm(5.5), 3), SICK)
    seen = clipping.record(state)
    np.testing.assert_allclose(seen.norm_before, [50, 1, 500], rtol=ROUNDING)
    assert seen.num_steps == 5


def test_one_nan_leaf_names_itself_and_one_nan_step_spoils_no_summary() -> None:
    monitored = clipping.monitor(clipping.clip_by_global_norm(5.5), 10)
    _, state = steps(monitored, [*SICK[:3], NAN, *SICK[3:]])
    _, without = steps(monitored, SICK)
    first = str(clipping.report(state)).splitlines()[0]
    assert "not finite on 1 of 6 steps, first at step 3 in ['first']" in first
    assert "['last']" not in first
    assert clipping.record(state).num_fired == 2
    for name, number in clipping.scalars(without).items():
        if "norm" in name or "factor" in name:
            assert clipping.scalars(state)[name] == number
    assert np.array_equal(state.infinite, [2, 0])
    np.testing.assert_array_equal(state.total_share, without.total_share)


def test_running_quantiles_are_those_of_the_whole_run_to_their_bin() -> None:
    norms = 10 ** np.random.default_rng(0).normal(size=400, scale=3)

    def step(state: Any, size: jax.Array) -> tuple[Any, None]:
        return monitored.update(jnp.stack([size, 0.0]), state)[1], None

    monitored = clipping.monitor(clipping.clip_by_global_norm(1.0), 1)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, jnp.asarray(norms)))(
        monitored.init(jnp.zeros(2))
    )
    row = clipping.scalars(state)
    for part in (50, 90, 99):
        for name, values in (
            ("norm_before", norms),
            ("norm_after", np.minimum(norms, 1)),
            ("factor", np.minimum(1, 1 / norms)),
        ):
            # Half a bin, a sixteenth of a power of two, of the value with that rank.
            whole = np.quantile(values, part / 100, method="inverted_cdf")
            assert row[f"clip/{name}_p{part}"] == pytest.approx(whole, rel=1 / 32 + ROUNDING)
    assert row["clip/fired"] == np.mean(norms > 1)


@pytest.mark.parametrize("number", [0.0, 1e-45, 1.0, 3.4e38])
def test_a_number_is_counted_in_a_bin_that_holds_it(number: float) -> None:
    counts = histogram.counted(histogram.empty(1), jnp.array([number], f32))
    near = histogram.quantile(counts[0], 0.5)
    assert near == pytest.approx(number, rel=1 / 32, abs=float(jnp.finfo(f32).tiny))


def test_nothing_that_is_not_finite_is_counted() -> None:
    counts = histogram.counted(histogram.empty(2), jnp.array([jnp.nan, jnp.inf], f32))
    assert math.isnan(histogram.quantile(counts, 0.5))


# ---- the report


def first_line(opt_state: Any, params: Any = None) -> str:
    return str(clipping.report(opt_state, params)).splitlines()[0]


def test_a_threshold_that_always_fires_is_the_learning_rate() -> None:
    monitored = clipping.monitor(clipping.clip_by_global_norm(0.05), 4, learning_rate=0.1)
    _, state = steps(monitored, [{"W": jnp.array([0.6, 0.8], f32)}] * 3)
    line = first_line(state)
    assert "fired on 100 % of 3 steps: the threshold is the learning rate" in line
    assert "the median step is 0.05 of what was asked for, a learning rate of 0.005" in line


def test_of_two_monitors_each_fault_names_its_own() -> None:
    wide, narrow = (clipping.monitor(clipping.clip_by_global_norm(tau), 4) for tau in (1e6, 0.1))
    _, state = steps(optax.chain(wide, narrow, optax.sgd(0.1)), SICK)
    assert first_line(state).startswith("[1]: fired on 100 % of 5 steps")
    assert "[0]" not in first_line(state)


def test_a_gradient_that_is_all_zero_is_named() -> None:
    _, state = steps(MONITORED, [{"W": jnp.zeros(3), "b": jnp.zeros(2)}] * 2)
    assert "no gradient in any step: ['W'], ['b'] (2 in all)" in first_line(state)


def test_counts_stay_at_their_largest_number() -> None:
    last = jnp.iinfo(jnp.int32).max
    state = MONITORED.init(NAN)
    state = state._replace(
        steps=jnp.full(3, last - 1, jnp.int32), wild=jnp.full((2, 2), last - 1, jnp.int32)
    )
    for _ in range(2):
        _, state = jax.jit(MONITORED.update)(NAN, state)
    assert (state.num_steps, state.num_infinite, state.infinite[0]) == (last, last, last)


def test_a_forgotten_head_is_named() -> None:
    params = {"body": jnp.ones(3), "head": jnp.ones(2), "still": jnp.ones(1)}
    optimizer = optax.masked(
        clipping.monitor(clipping.clip_by_global_norm(9.0), 4),
        {"body": True, "head": False, "still": True},
    )
    grads = params | {"still": jnp.zeros(1)}
    _, state = optimizer.update(grads, optimizer.init(params), params)
    line = first_line(state, params)
    assert "no clip ever saw ['head'] (1 in all)" in line
    assert "no gradient in any step: ['still'] (1 in all)" in line
    assert "['body']" not in line


def test_a_norm_in_bfloat16_is_named() -> None:
    grads = {"W": jnp.ones(1000, jnp.bfloat16)}

    def short(updates: Any, params: Any) -> Any:
        del params
        total = jax.lax.fori_loop(  # one after another: the sum stays at 256
            0, 1000, lambda i, s: s + updates["W"][i] ** 2, jnp.zeros((), jnp.bfloat16)
        )
        return {"W": updates["W"] / jnp.sqrt(total)}

    _, state = steps(clipping.monitor(optax.stateless(short), 4, tau=1.0), [grads] * 2)
    assert "above its threshold 1: the norm is taken in too short a format" in first_line(state)
    _, state = steps(clipping.monitor(clipping.clip_by_global_norm(1.0), 4, tau=1.0), [grads] * 2)
    assert "too short" not in first_line(state)


def test_a_healthy_clip_is_said_to_be_so() -> None:
    _, state = steps(clipping.monitor(clipping.clip_by_global_norm(5.5), 4), SICK)
    report = clipping.report(state)
    assert report.verdict == "fired on 40 % of 5 steps"
    assert "<td>[&#x27;last&#x27;]</td>" in report._repr_html_()
    fresh = clipping.monitor(clipping.clip_by_global_norm(1.0), 2).init(SICK[0])
    assert "no step yet" in first_line(fresh)


def test_entries_that_the_clip_pushes_under_epsilon_are_counted() -> None:
    grads = {"W": jnp.array([1e9, 1e-3, 1e-9, 1.0], f32)}
    monitored = clipping.monitor(clipping.clip_by_global_norm(1.0), 4, epsilon=1e-8)
    _, state = steps(monitored, [grads] * 2)
    # Of four entries, 1e-3 and 1 become 1e-12 and 1e-9; 1e-9 was under it before.
    assert clipping.scalars(state)["clip/pushed_under_epsilon"] == 0.5
    assert "50 % of the entries pushed under epsilon" in str(clipping.report(state))


class Model(eqx.Module):
    """A layer and an optimiser's state, as a user's training state."""

    layer: eqx.nn.Linear
    state: Any


MONITORED = clipping.monitor(clipping.clip_by_global_norm(1.0), 4)
WRAPPERS = {
    "chain": lambda clip: optax.chain(clip, optax.adam(0.1)),
    "several steps": lambda clip: optax.MultiSteps(optax.chain(clip, optax.sgd(0.1)), 1),
    "masked": lambda clip: optax.masked(clip, {"W": True, "b": False}),
    "groups": lambda clip: optax.multi_transform(
        {"clipped": clip, "free": optax.sgd(0.1)}, {"W": "clipped", "b": "free"}
    ),
    "injected": lambda clip: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(clip, optax.sgd(learning_rate))
    )(learning_rate=0.1),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_monitor_is_found_in_any_state(name: str) -> None:
    params = {"W": jnp.ones((2, 2)), "b": jnp.ones(2)}
    optimizer = WRAPPERS[name](MONITORED)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = jax.jit(optimizer.update)(params, state, params)
    (found,) = clipping.monitors(state).values()
    assert clipping.record(found).num_steps == 2
    assert "fired on 100 % of 2 steps" in first_line(state)
    unseen = "no clip ever saw ['b']" in first_line(state, params)
    assert unseen == (name in ("masked", "groups"))


def test_a_monitor_is_found_in_an_equinox_model_and_names_its_leaves() -> None:
    layer = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    _, state = MONITORED.update(layer, MONITORED.init(layer))
    report = clipping.report(Model(layer, (state, optax.EmptyState())))
    assert sorted(row[0] for row in report.rows) == [".bias", ".weight"]


def test_a_state_without_a_monitor_is_refused() -> None:
    with pytest.raises(ValueError, match="opt_state holds no monitor; allowed: one of gl.clipping"):
        clipping.report(optax.adam(0.1).init(jnp.ones(2)))


def test_a_monitor_without_history_is_refused() -> None:
    with pytest.raises(ValueError, match="history is 0; allowed: a whole number of at least 1"):
        clipping.monitor(optax.identity(), 0)


def test_leaves_of_any_shape_are_looked_at_again_each_by_itself() -> None:
    rng = np.random.default_rng(12)
    leaves = [
        jnp.asarray(scale * rng.normal(size=shape), dtype)
        for scale, shape, dtype in (
            (1e-30, (3000,), "float32"),
            (1e3, (7, 5), "bfloat16"),
            (1e30, (), "float32"),
            (0.0, (0, 4), "float32"),
            (1e-6, (1024,), "float16"),
        )
    ]
    leaves[1] = leaves[1].at[2, 3].set(jnp.nan)
    sizes, counts = jax.jit(lambda leaves: leaf_norms.sizes(leaves, f32))(leaves)
    np.testing.assert_array_equal(counts, [0, 1, 0, 0, 0])
    expected = [np.linalg.norm(np.asarray(leaf).astype(float).ravel()) for leaf in leaves]
    # Rows of 1024 squares, whose sums are added up; a root.
    np.testing.assert_allclose(sizes, expected, rtol=16 * 2.0**-24)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_norm_of_each_leaf_is_right_at_any_size_in_one_program(dtype: Any) -> None:
    info = jnp.finfo(dtype)
    small, large = float(info.tiny) * 2**10, float(info.max) / 2**10
    leaves = [jnp.array(x, dtype) for x in ([0.0], [3.0, 4.0], [small, 0.0], [large, 0.0])]
    sizes, _ = jax.jit(lambda leaves: leaf_norms.sizes(leaves, dtype))(leaves)
    rounding = 4 * float(info.eps)
    np.testing.assert_allclose(sizes, [0.0, 5.0, small, large], rtol=rounding)
