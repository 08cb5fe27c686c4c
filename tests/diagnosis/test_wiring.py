"""A broken stream, logits behind an activation, a memory too short: found, named, mended."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gradlab as gl
from gradlab.diagnosis import anatomy, door, exceptional, facts, operations, rewiring, skips
from gradlab.errors import BadInput
from tests.diagnosis import sick

DEPTH, WIDTH, CLASSES = 4, 16, 5


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


Sum = Callable[[int, Any, Any], Any]
Case = tuple[Any, Any, Any]


def parts(model: Any, batch: Any, loss: Any) -> anatomy.Anatomy:
    leaves, treedef = jax.tree_util.tree_flatten(batch)
    return anatomy.of_loss(door.opened(model), leaves, treedef, loss)


def blocks(sum_: Sum) -> Case:
    plain = sick.residual_mlp(DEPTH, WIDTH)
    params = [{"up": up.weight, "down": down.weight} for up, down in plain.blocks]

    def function(blocks: Any, x: Any) -> Any:
        for k, block in enumerate(blocks):
            x = sum_(k, x, jax.nn.relu(sick.unit(x) @ block["up"].T) @ block["down"].T)
        return x

    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(sick.unit(model(batch))[:, 0])

    return (params, function), jax.random.normal(jax.random.key(1), (8, WIDTH)), loss


def test_a_block_without_its_sum_is_found_and_given_it() -> None:
    (params, whole), batch, loss = blocks(lambda _, x, f: x + f)
    audit = gl.audit(*blocks(lambda k, x, f: f if k == 2 else x + f))
    first = audit.findings[0]

    assert (first.kind, first.layer, first.measured) == ("broken stream", "2.down", 0.0)
    assert str(first.remedy) == 'gl.add_stream("2.down")'
    # The changed model is the whole one: one loss to some roundings.
    expected = float(loss(lambda x: whole(params, x), batch))
    assert first.remedy is not None
    assert first.remedy.loss_after == pytest.approx(expected, rel=DEPTH * WIDTH * 1.2e-7)
    with pytest.raises(BadInput, match="lacks the sum"):
        audit.what_if(gl.add_stream("3.down"))


@pytest.mark.parametrize("missing", [set(), {0}, {DEPTH - 1}, {1, 2}])
def test_a_first_and_a_last_block_and_a_pattern_may_have_no_sum(missing: set[int]) -> None:
    assert parts(*blocks(lambda k, x, f: f if k in missing else x + f)).gaps == ()


def test_a_detached_stream_is_found_and_let_through() -> None:
    read = parts(*blocks(lambda k, x, f: (jax.lax.stop_gradient(x) if k == 2 else x) + f))
    stops = [skips.stopped_by(read.program, one) is not None for one in read.residuals]
    assert stops == [k == 2 for k in range(DEPTH)]

    change = gl.straight_through("stop_gradient@1.down")
    changed = rewiring.rewired(read, [change], facts.slices_of(read))
    step = skips.stopped_by(changed, read.residuals[2])
    assert step is not None
    assert step.params[operations.PASSED]


def classified(activation: Any, loss: Any) -> Case:
    keys = jax.random.split(jax.random.key(2), 3)
    shapes = [(WIDTH, WIDTH), (WIDTH, CLASSES)]
    params = [jax.random.normal(keys[k], s) * (2 / s[0]) ** 0.5 for k, s in enumerate(shapes)]

    def function(params: Any, x: Any) -> Any:
        return activation(jax.nn.relu(x @ params[0]) @ params[1])

    batch = jax.random.normal(keys[2], (32, WIDTH))
    return (params, function), batch, lambda m, b: loss(m(b))


def softmaxed(z: Any) -> Any:
    return -jnp.mean(jax.nn.log_softmax(z)[:, 0])


def sigmoid(z: Any) -> Any:
    return -jnp.mean(jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z[:, :1]))


def hinge(z: Any) -> Any:
    return jnp.mean(jax.nn.relu(1 - z))


@pytest.mark.parametrize("loss", [softmaxed, sigmoid])
@pytest.mark.parametrize("activation", [jax.nn.relu, lambda z: jnp.where(z > 0, z, 0)])
def test_an_activation_on_logits_is_seen(activation: Any, loss: Any) -> None:
    (one,) = parts(*classified(activation, loss)).rectified
    assert one.activated.name == "1"


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        (lambda z: z, softmaxed),
        (lambda z: 9 * jnp.tanh(z), softmaxed),
        (lambda z: z, sigmoid),
        (lambda z: z, hinge),
    ],
)
def test_a_loss_that_rectifies_is_no_activation_on_logits(activation: Any, loss: Any) -> None:
    assert parts(*classified(activation, loss)).rectified == ()


def test_rectified_logits_are_named_with_the_share_that_gets_no_gradient() -> None:
    model, batch, loss = classified(jax.nn.relu, softmaxed)
    first, *_ = gl.audit(model, batch, loss).findings
    params, function = model

    assert (first.kind, first.layer) == ("rectified logits", "1")
    assert first.measured == pytest.approx(float(jnp.mean(function(params, batch) == 0)), abs=1e-6)
    assert str(first.remedy) == 'gl.without_activation("1")'
    assert first.remedy is not None
    assert first.remedy.after == 0


def remembered(bias: float, num_steps: int, read: Any) -> Any:
    """The audit of two gates in one bias, of which the second keeps the state."""
    half = WIDTH // 2
    params = {"bias": jnp.repeat(jnp.asarray([0.5, bias]), half)}

    def function(params: Any, x: Any) -> Any:
        def turn(c: Any, u: Any) -> Any:
            enter, keep = jnp.split(jax.nn.sigmoid(params["bias"]), 2)
            c = keep * c + enter * u
            return c, c

        _, states = jax.lax.scan(turn, jnp.zeros((4, half)), x)
        return read(states)

    x = jax.random.normal(jax.random.key(3), (num_steps, 4, half))
    return gl.audit((params, function), x, lambda m, b: jnp.mean(m(b) ** 2))


def test_what_a_gate_keeps_is_the_power_of_its_value() -> None:
    num_steps, bias = 400, 1.0
    audit = remembered(bias, num_steps, lambda states: states[-1])
    (memory,) = audit.facts.memories()
    (finding,) = audit.findings
    half = WIDTH // 2
    log = -math.log1p(math.exp(-bias))

    # Of T terms of one size each sum's rounding is T of its own.
    assert memory.log_kept == pytest.approx(num_steps * log, rel=num_steps * 1.2e-7)
    # The loss reads the last state: T - 1 steps lie between the first one and it. By log norms,
    # which begin where the last state's gradient leaves the range of float32.
    assert memory.log_gradient in {-math.inf} or memory.log_gradient == pytest.approx(
        (num_steps - 1) * log, rel=1e-4
    )
    assert (memory.part, memory.sign) == ((half, WIDTH), 1.0)
    assert (finding.kind, finding.layer) == ("forgetting", "bias")
    assert finding.remedy.changes == (gl.fill("bias", math.log(num_steps - 1), (half, WIDTH)),)
    # A gate at log(T - 1) keeps 1 - 1/T a step.
    kept = (1 - 1 / num_steps) ** num_steps
    assert finding.remedy.after == pytest.approx(kept, rel=num_steps * 1.2e-6)


def test_a_short_memory_is_enough_where_every_step_is_read() -> None:
    audit = remembered(1.0, 400, lambda states: states)
    assert audit.findings == []
    # Each step's own term arrives beside all later ones: no more than a geometric series.
    (memory,) = audit.facts.memories()
    assert memory.log_gradient > -math.log(400)


def test_an_embedding_of_zeros_is_named_itself() -> None:
    keys = jax.random.split(jax.random.key(4), 2)
    params = {
        "table": jnp.zeros((9, WIDTH)),
        "head": jax.random.normal(keys[0], (WIDTH, CLASSES)) / 4,
    }

    def function(params: Any, tokens: Any) -> Any:
        return sick.unit(params["table"][tokens]) @ params["head"]

    tokens = jax.random.randint(keys[1], (16,), 0, 9)
    first, *_ = gl.audit((params, function), tokens, lambda m, b: softmaxed(m(b))).findings
    assert (first.kind, first.layer) == ("copies", "table")
    assert first.remedy is not None
    assert first.remedy.after == 0


def test_a_logarithm_is_named_whose_infinity_is_read_later() -> None:
    weights = [jnp.eye(4), -jnp.eye(4), jnp.eye(4)]

    def loss(weights: Any, x: Any) -> Any:
        logs = [jnp.log(jax.nn.relu(x @ weight)) for weight in weights]
        return 1 - jnp.mean(logs[0] + logs[1] + logs[2])

    program = parts(weights, jnp.ones((2, 4)), loss).program
    k = exceptional.first_not_finite(program, [*weights, jnp.ones((2, 4))])
    logs = [i for i, step in enumerate(program.steps) if step.name == "log"]
    assert k == logs[1]
