"""The watch changes nothing, its numbers are those of a run kept in full, and events have order."""

import math
from functools import cache
from typing import Any

import jax
import numpy as np
import optax
import pytest

import gradlab as gl
from gradlab.diagnosis import spikes

HISTORY, STEPS = 16, 40
PARAMS = {"first": {"W": np.ones((3, 3)), "b": np.full(3, 2.0)}, "last": np.ones(4)}
OPTIMIZER = optax.adam(1e-3)


def gradients() -> Any:
    """STEPS gradients, a leading axis of steps."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda p: draw.standard_normal((STEPS, *p.shape)), PARAMS)


@cache
def program() -> Any:
    optimizer = gl.watch(OPTIMIZER, HISTORY)

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        update, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, update), state), (update, params)

    def run(params: Any, gradients: Any) -> Any:
        return jax.lax.scan(step, (params, optimizer.init(params)), gradients)

    return jax.jit(run)


def watched(gradients: Any) -> Any:
    (_, state), seen = program()(PARAMS, gradients)
    return state, seen


def louder(gradients: Any, path: tuple[str, ...], since: int, until: int) -> Any:
    """Gradients of which one layer's are twice as large in each step, from `since` on."""
    times = np.where(np.arange(STEPS) < since, 1.0, 2.0 ** (np.arange(STEPS) - since + 2))
    times = np.where(np.arange(STEPS) > until, 1.0, times)

    def changed(at: Any, leaf: Any) -> Any:
        names = tuple(key.key for key in at)
        return leaf * times.reshape(-1, *[1] * (leaf.ndim - 1)) if names == path else leaf

    return jax.tree_util.tree_map_with_path(changed, gradients)


def test_the_watch_changes_nothing_bit_for_bit() -> None:
    updates: list[list[Any]] = []
    for optimizer in (gl.watch(OPTIMIZER, HISTORY), OPTIMIZER):
        state, update, made = optimizer.init(PARAMS), jax.jit(optimizer.update), []
        for k in range(3):
            one, state = update(jax.tree.map(lambda g, k=k: g[k], gradients()), state, PARAMS)
            made.append(one)
        updates.append(jax.tree.leaves(made))
    assert all(map(np.array_equal, *updates))


def test_its_numbers_are_those_of_the_whole_run() -> None:
    state, (updates, params) = watched(gradients())
    row = gl.watching.scalars((optax.EmptyState(), state))  # as a chain holds it

    def norms(tree: Any) -> Any:
        return {
            "first.W": np.linalg.norm(tree["first"]["W"], axis=(1, 2)),
            "first.b": np.linalg.norm(tree["first"]["b"], axis=1),
            "last": np.linalg.norm(tree["last"], axis=1),
        }

    gradient, update, weight = map(norms, (gradients(), updates, params))
    for layer in gradient:
        # Sums of at most nine squares, a root and a quotient, in double precision.
        expected = update[layer] / weight[layer]
        assert row[f"watch/gradient/{layer}"] == pytest.approx(gradient[layer][-1], rel=1e-14)
        assert row[f"watch/update_over_weight/{layer}"] == pytest.approx(expected[-1], rel=1e-14)
    total = np.sqrt(sum(norm**2 for norm in gradient.values()))
    assert row["watch/gradient"] == pytest.approx(total[-1], rel=1e-14)
    # Half a bin, a sixteenth of a power of two, of the number with that rank.
    middle = np.quantile(total, 0.5, method="inverted_cdf")
    assert row["watch/gradient_p50"] == pytest.approx(middle, rel=1 / 32)
    assert row["watch/steps"] == STEPS


def test_the_layer_that_rose_first_is_named_first() -> None:
    sick = louder(gradients(), ("last",), 28, 33)
    sick = louder(sick, ("first", "W"), 30, 33)
    state, _ = watched(sick)
    first, second, *_ = gl.watching.events(state)

    assert (first.layer, first.step) == ("last", 28)
    assert (second.layer, second.step) == ("first.W", 30)
    lines = str(gl.watching.report(state)).splitlines()
    assert lines[0].startswith("a spike at step 33: the gradient's norm is ")
    assert lines[1].startswith("step 28: last rose to ")


def test_a_spike_that_is_past_is_still_told() -> None:
    state, _ = watched(louder(gradients(), ("last",), 18, 22))
    assert gl.watching.scalars(state)["watch/spike_step"] == 22
    assert gl.watching.events(state)[0].step == 18


def test_all_layers_at_once_are_a_batch_and_not_a_layer() -> None:
    sick = jax.tree.map(lambda leaf: np.concatenate([leaf[:-1], 1e3 * leaf[-1:]]), gradients())
    assert "all 3 layers rose at once, at step 39" in str(gl.watching.report(watched(sick)[0]))


def test_a_healthy_run_has_no_event() -> None:
    state, _ = watched(gradients())
    assert gl.watching.events(state) == []
    assert str(gl.watching.report(state)).startswith("no spike in 40 steps")


def test_the_first_step_and_layer_that_is_not_finite_is_named_with_what_was_before() -> None:
    sick = louder(gradients(), ("first", "W"), 24, STEPS)
    sick["first"]["W"][30:] = np.nan
    sick["last"][31:] = np.inf
    state, _ = watched(sick)
    report = str(gl.watching.report(state))

    assert report.startswith("not finite on 10 of 40 steps, first at step 30: first.W\n")
    first = gl.watching.events(state)[0]
    assert (first.layer, first.step, first.at_spike) == ("first.W", 24, math.inf)


def test_without_weights_an_update_over_them_is_not_known() -> None:
    optimizer = gl.watch(optax.sgd(0.1))
    state = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS))[1]
    assert math.isnan(gl.watching.scalars(state)["watch/update_over_weight/last"])
    assert gl.watching.scalars(state)["watch/gradient/last"] == 2.0


def test_what_is_no_optimiser_or_holds_no_watch_is_refused() -> None:
    with pytest.raises(gl.BadInput, match="wraps an optax transformation, not a float"):
        gl.watch(1e-3)
    with pytest.raises(gl.BadInput, match="history is 2; allowed: a whole number of at least 4"):
        gl.watch(OPTIMIZER, 2)
    with pytest.raises(gl.BadInput, match="holds no watch"):
        gl.watching.report(OPTIMIZER.init(PARAMS))


@pytest.mark.parametrize("num_kept", [4, 5, 9, 64])
def test_steps_of_one_law_exceed_their_calm_as_often_as_records_say(num_kept: int) -> None:
    draw, calm = np.random.default_rng(num_kept), spikes.calm_steps(num_kept)
    num_layers = 20_000
    found = spikes.risen(
        draw.standard_cauchy((num_kept, num_layers)) ** 2,
        num_kept - 1,
        [str(k) for k in range(num_layers)],
    )
    chance = 1 / (calm + 1)
    # A binomial count of independent layers: five standard errors.
    error = math.sqrt(chance * (1 - chance) / num_layers)
    assert len(found) / num_layers == pytest.approx(chance, abs=5 * error)
