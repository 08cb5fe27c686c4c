"""The training loop against steps taken by hand, the data, and the planted freak batch."""

import gzip
import hashlib
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradlab
from gradlab.measuring import clipping, training
from gradlab.models import chain

PACKAGE = Path(gradlab.__file__).parent
ROW_3, ROW_4 = [0, 4, 12, 0, 0, 8, 8, 0], [0, 5, 8, 0, 0, 9, 8, 0]  # of the first image


def apply(params: Any, x: jax.Array) -> jax.Array:
    return params["W"] @ x + params["b"]


@pytest.fixture
def data() -> training.Data:
    key_x, key_y = jax.random.split(jax.random.key(0))
    return training.Data(jax.random.normal(key_x, (12, 3)), jax.random.randint(key_y, (12,), 0, 2))


@pytest.fixture
def start() -> dict[str, jax.Array]:
    return {"W": jnp.array([[0.1, -0.2, 0.3], [0.0, 0.5, -0.4]]), "b": jnp.zeros(2)}


def by_hand(params: Any, data: training.Data, learning_rate: float) -> tuple[Any, Any]:
    """One step of gradient descent and the gradient, from softmax minus one-hot."""
    logits = np.asarray(data.x) @ np.asarray(params["W"]).T + np.asarray(params["b"])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = weights / weights.sum(axis=1, keepdims=True) - np.eye(2)[np.asarray(data.y)]
    grads = {"W": error.T @ np.asarray(data.x) / len(error), "b": error.mean(axis=0)}
    return {name: params[name] - learning_rate * grads[name] for name in params}, grads


def norm(tree: Any) -> float:
    return math.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(tree)))


def test_the_trajectory_is_that_of_steps_taken_by_hand(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    steps = training.Schedule(jnp.array([[0, 1, 2, 3], [4, 5, 6, 7], [1, 8, 9, 0]]), jnp.ones(3))
    seen = jax.jit(lambda params: training.train(apply, params, optax.sgd(0.5), data, steps))(start)
    now = start
    for step, indices in enumerate(steps.indices):
        part = training.Data(data.x[indices], data.y[indices])
        later, grads = by_hand(now, part, 0.5)
        moved = {name: later[name] - start[name] for name in start}
        # A dozen float64 roundings a step, on numbers of order 1.
        close: dict[str, Any] = {"rtol": 1e-13, "atol": 1e-15}
        np.testing.assert_allclose(seen.loss[step], training.loss(apply, now, part), **close)
        expected = [norm(grads["W"]), norm(grads["b"])]
        np.testing.assert_allclose(seen.gradient[step], expected, **close)
        np.testing.assert_allclose(seen.step_size[step], 0.5 * norm(grads), **close)
        np.testing.assert_allclose(seen.distance[step], norm(moved), **close)
        now = later
    for name, leaf in now.items():
        np.testing.assert_allclose(seen.params[name], leaf, rtol=1e-13)


def test_watched_values_are_of_the_parameters_before_each_step(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    steps = training.Schedule(jnp.arange(12).reshape(2, 6), jnp.ones(2))
    seen = training.train(
        apply, start, optax.sgd(0.1), data, steps, watch=lambda params: params["b"]
    )
    np.testing.assert_array_equal(seen.watched[0], start["b"])
    assert np.any(np.asarray(seen.watched[1]) != np.asarray(start["b"]))


def test_training_can_be_mapped_over_learning_rates(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    steps = training.Schedule(jnp.arange(12).reshape(3, 4), jnp.ones(3))

    def distance(learning_rate: jax.Array) -> jax.Array:
        return training.train(apply, start, optax.sgd(learning_rate), data, steps).distance

    rates = jnp.array([0.01, 0.1, 1.0])
    mapped = jax.jit(jax.vmap(distance))(rates)
    for rate, row in zip(rates, mapped, strict=True):
        # A batched matrix product may add in another order.
        np.testing.assert_allclose(row, jax.jit(distance)(rate), rtol=1e-13)


def test_a_freak_batch_is_planted_at_its_step_and_the_clip_holds_the_step_at_its_size(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    calm = training.Schedule(jnp.zeros((5, 2), int), jnp.ones(5))
    wild = training.with_freak(calm, 3, -1e4)  # on the wrong side of every boundary
    np.testing.assert_array_equal(wild.gain, [1, 1, 1, -1e4, 1])
    np.testing.assert_array_equal(
        training.batch(data, wild.indices[3], wild.gain[3]).x, -1e4 * data.x[wild.indices[3]]
    )
    tau = 0.25

    def run(transformation: Any) -> training.Trajectory:
        optimizer = optax.chain(transformation, optax.sgd(1.0))
        return training.train(apply, start, optimizer, data, wild)

    free, held = run(optax.identity()), run(clipping.clip_by_global_norm(tau))
    assert free.step_size[3] > 1e3
    assert jnp.max(held.step_size) <= tau
    # Steps of size tau at most, one after the other; the sum rounds 5 times.
    assert held.distance[-1] <= 5 * tau * (1 + 5 * 2.0**-53)


def test_a_run_that_diverges_returns_its_infinities(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    steps = training.with_freak(training.Schedule(jnp.zeros((3, 2), int), jnp.ones(3)), 1, jnp.inf)
    seen = training.train(apply, start, optax.sgd(1.0), data, steps)
    assert bool(jnp.isfinite(seen.loss[0]))
    assert not bool(jnp.isfinite(seen.loss[2]))


def test_layers_are_those_of_the_chains_and_leaves_stand_for_themselves() -> None:
    stack = chain.linear(jnp.array([[[3.0, 0], [0, 4]], [[0, 1], [0, 0]]]))
    single = chain.linear(jnp.array([[[5.0, 12]]]))
    norms = jax.jit(training.norms_by_layer)(
        {"body": (stack, single), "scale": jnp.array([2.0, 0])}
    )
    np.testing.assert_array_equal(norms, [5, 1, 13, 2])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30, 3e37])
def test_the_length_of_a_tree_is_right_where_its_squares_leave_the_range(scale: float) -> None:
    tree = {"W": jnp.array([[2.0, 3.0]], jnp.float32) * scale, "b": jnp.float32(6.0) * scale}
    assert training.fast_norm(tree) == pytest.approx(7 * scale, rel=8 * 2.0**-24)  # a rounding each


def test_the_length_of_a_tree_does_not_hide_zero_infinity_or_nan() -> None:
    assert training.fast_norm([jnp.zeros(2), jnp.zeros(0)]) == 0
    assert training.fast_norm([jnp.array([1.0, -jnp.inf])]) == jnp.inf
    assert jnp.isnan(training.fast_norm([jnp.array([jnp.inf, jnp.nan])]))


def test_a_model_of_chains_is_its_own_parameters() -> None:
    model = (chain.linear(jnp.array([[[1.0, 2], [3, 4]]])), chain.linear(jnp.array([[[1.0, -1]]])))
    np.testing.assert_array_equal(training.apply_model(model, jnp.array([1.0, 1])), [-4])
    np.testing.assert_array_equal(training.apply_model(model[0], jnp.array([1.0, 1])), [3, 7])


def test_a_model_of_chains_learns_the_digits() -> None:
    train, held_out = training.digits(float)
    model = (chain.linear(jnp.zeros((1, 10, 64))),)
    steps = training.schedule(jax.random.key(3), len(train.y), 64, 60)
    end = jax.jit(
        lambda steps: (
            training.train(training.apply_model, model, optax.sgd(1.0), train, steps).params
        )
    )(steps)
    assert training.accuracy(training.apply_model, model, held_out) < 0.2  # chance
    assert training.accuracy(training.apply_model, end, held_out) > 0.85  # measured: 0.94


def test_the_digits_are_those_of_the_source_in_its_order() -> None:
    packed = (PACKAGE / "data" / "digits.csv.gz").read_bytes()
    assert hashlib.sha256(gzip.decompress(packed)).hexdigest() == (
        "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
    )
    pixels, labels = training._digits()
    assert (pixels.dtype, labels.dtype) == (np.float64, np.int32)
    # The source counts its digits: UCI, "No of examples in testing set", 0 to 9.
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(labels), counts)
    # Every value is a count of the 16 dots of a block.
    assert set(np.unique(pixels * 16)) == set(range(17))
    # The first image: a 0, with nothing in the middle of its middle rows.
    assert labels[0] == 0
    np.testing.assert_array_equal(pixels[0].reshape(8, 8)[3:5] * 16, [ROW_3, ROW_4])


def test_the_digits_are_split_the_same_way_each_time_and_scaled() -> None:
    train, held_out = training.digits(jnp.float32)
    assert (train.x.shape, held_out.x.shape) == ((1438, 64), (359, 64))
    assert train.x.dtype == jnp.float32
    for part in (train, held_out):
        assert (float(part.x.min()), float(part.x.max())) == (0, 1)
        assert set(np.asarray(part.y)) == set(range(10))
        # Each digit is a tenth of either part, within four binomial standard errors.
        share = np.bincount(part.y) / len(part.y)
        assert np.all(np.abs(share - 0.1) < 4 * math.sqrt(0.09 / len(part.y)))
    seen = {row.tobytes() for row in np.asarray(train.x)}
    assert not seen & {row.tobytes() for row in np.asarray(held_out.x)}
    # The first two of every five images are there in their order.
    pixels = training._digits()[0]
    np.testing.assert_array_equal(train.x[:2], pixels[:2])
    np.testing.assert_array_equal(held_out.x[0], pixels[4])


def test_a_schedule_sees_every_example_once_a_round_in_a_new_order() -> None:
    indices = np.asarray(training.schedule(jax.random.key(4), 12, 4, 6).indices)
    first, second = indices[:3].ravel(), indices[3:].ravel()
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_a_schedule_is_the_same_for_the_same_key() -> None:
    one, two = (training.schedule(jax.random.key(5), 9, 2, 7) for _ in range(2))
    np.testing.assert_array_equal(one.indices, two.indices)
    assert one.indices.shape == (7, 2)


@pytest.mark.parametrize(("batch_size", "num_steps"), [(0, 1), (13, 1), (4, 0)])
def test_a_schedule_that_cannot_be_is_refused(batch_size: int, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size is {batch_size} and num_steps {num_steps}"):
        training.schedule(jax.random.key(0), 12, batch_size, num_steps)


@pytest.mark.parametrize("step", [-1, 3])
def test_a_freak_at_a_step_that_there_is_not_is_refused(step: int) -> None:
    steps = training.Schedule(jnp.zeros((3, 1), int), jnp.ones(3))
    with pytest.raises(ValueError, match=f"freak_step is {step}; allowed: 0 to 2"):
        training.with_freak(steps, step, 1e4)


def test_the_cross_entropy_is_that_of_the_textbook_and_survives_huge_logits() -> None:
    logits = jnp.array([[0.0, math.log(3)], [1e30, -1e30]])
    value = training.cross_entropy(logits, jnp.array([1, 1]))
    assert value == pytest.approx((math.log(4 / 3) + 2e30) / 2, rel=2.0**-51)  # four roundings


def test_a_monitor_before_the_optimiser_keeps_its_record_through_training(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    steps = training.with_freak(training.Schedule(jnp.zeros((4, 2), int), jnp.ones(4)), 2, -1e4)
    watched = clipping.monitor(clipping.clip_by_global_norm(10.0), 8)
    seen = training.train(apply, start, optax.chain(watched, optax.sgd(0.1)), data, steps)
    report = clipping.record(seen.optimizer[0])
    assert report.num_fired == 1
    np.testing.assert_allclose(report.norm_before[2], norm(seen.gradient[2]), rtol=1e-15)  # ulps


def test_projected_inputs_have_no_mean_before_and_mean_square_1_after(data: training.Data) -> None:
    P = jnp.array([[1.0, 2.0, 0.0], [0.0, -1.0, 1.0]])
    found = training.projected(data, P)
    x = (np.asarray(data.x) - np.asarray(data.x).mean(0)) @ np.asarray(P).T
    expected = x / np.sqrt((x**2).mean(1, keepdims=True))

    np.testing.assert_allclose(found.x, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.y, data.y)


def test_a_batch_as_one_example_is_trained_on_as_the_batch_is(
    data: training.Data, start: dict[str, jax.Array]
) -> None:
    batches = training.schedule(jax.random.key(1), 12, 4, 7)

    def of_batch(params: Any, batch: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: apply(params, x))(batch)

    one = training.train(apply, start, optax.sgd(0.3), data, batches)
    whole = training.train(of_batch, start, optax.sgd(0.3), *training.whole_batches(data, batches))

    np.testing.assert_allclose(whole.loss, one.loss, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), whole.params, one.params
    )


def test_class_correlations_are_means_over_pairs() -> None:
    data = training.projected(
        training.Data(jax.random.normal(jax.random.key(4), (30, 6)), jnp.arange(30) % 4),
        jnp.eye(6),
    )
    pairs = np.asarray(data.x @ data.x.T / 6)
    alike = np.asarray(data.y)[:, None] == np.asarray(data.y)
    expected = pairs[alike & ~np.eye(30, dtype=bool)].mean(), pairs[~alike].mean()

    np.testing.assert_allclose(training.class_correlations(data, 4), expected, rtol=1e-12)
