"""Faults in operations, not in numbers: where a gradient stops, and where numbers end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.diagnosis.examination import Finding
from tests.diagnosis import sick

WIDTH = 16
BATCH = (
    np.random.default_rng(3).standard_normal((16, WIDTH)).astype(np.float32),
    np.arange(16, dtype=np.int32) % 10,
)


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def weights(last: float = 2**0.5) -> list[Any]:
    """Four matrices of He's law."""
    draws = np.random.default_rng(0)
    gains = [2**0.5, 2**0.5, 2**0.5, last]
    return [jnp.asarray(g * draws.standard_normal((16, 16)) / 4, "float32") for g in gains]


def loss(model: Any, batch: Any) -> Any:
    return sick.cross_entropy(model(batch[0]), batch[1])


def findings(inside: Callable[[Any], Any], params: Any = None, loss: Any = loss) -> list[Finding]:
    """Of an MLP with something done to its second layer."""

    def function(params: Any, x: Any) -> Any:
        for k, W in enumerate(params[:-1]):
            x = jax.nn.relu(x @ W)
            x = inside(x) if k == 1 else x
        return x @ params[-1]

    return gl.audit((params or weights(), function), BATCH, loss).findings


@pytest.mark.parametrize(
    ("inside", "operation"),
    [
        (jax.lax.stop_gradient, "stop_gradient"),
        (lambda x: jnp.round(4 * x) / 4, "round"),
        (lambda x: jnp.clip(x, 0, 1e-3), "min"),
    ],
)
def test_what_stops_a_gradient_is_named_and_let_through(inside: Any, operation: str) -> None:
    only, *_ = findings(inside)

    assert only.layer == "1"
    assert str(only.remedy) == f'gl.straight_through("{operation}@1")'


@pytest.mark.parametrize(
    ("inside", "operation"),
    [
        (lambda x: x / jnp.linalg.norm(0 * x, axis=-1, keepdims=True), "div"),
        (lambda x: x + jnp.sqrt(0 * x), "sqrt"),
        (lambda x: x + jnp.log(0 * x), "log"),
    ],
)
def test_what_is_not_finite_is_kept_in_range(inside: Any, operation: str) -> None:
    first = findings(inside)[0]

    assert first.kind == "not finite"
    assert f'gl.guard("{operation}"' in str(first.remedy)


def test_a_straight_through_operation_keeps_its_value() -> None:
    params = weights()

    def rounded(params: Any, x: Any) -> Any:
        return jnp.round(x @ params[0]) @ params[1]

    def square(model: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(model(x)))

    audit = gl.audit((params[:2], rounded), BATCH[0], square)
    trial = audit.what_if(gl.straight_through("round@0"))

    # The value is x + (round(x) - x): two roundings of it, and the loss is of its square.
    assert trial.loss_after == pytest.approx(audit.loss, rel=8 * 1.2e-7)
    with pytest.raises(gl.BadInput, match="round"):
        audit.what_if(gl.straight_through("round@1"))


def test_what_is_frozen_on_purpose_is_no_finding() -> None:
    def adapted(params: Any, x: Any) -> Any:
        for W, A, B in params:
            x = jax.nn.relu(x @ jax.lax.stop_gradient(W) + x @ A @ B)
        return x

    params = [(W, W[:, :2], jnp.zeros((2, WIDTH))) for W in weights()[:3]]
    assert gl.audit((params, adapted), BATCH, loss).findings == []


def test_zeros_that_open_one_after_another_are_no_finding() -> None:
    draws = np.random.default_rng(1)

    def drawn() -> Any:
        return jnp.asarray(draws.standard_normal((WIDTH, WIDTH)) / 4, "float32")

    def function(params: Any, x: Any) -> Any:
        for block in params[0]:
            x = x + (x @ block["gate"]) * (jax.nn.relu(x @ block["up"]) @ block["down"])
        return x @ params[1]

    zero = jnp.zeros((WIDTH, WIDTH))
    blocks = [{"gate": zero, "up": drawn(), "down": drawn()} for _ in range(3)]
    # The last matrix moves first, then the gates, then what is behind them (Peebles and Xie 2023).
    assert gl.audit(((blocks, zero), function), BATCH, loss).findings == []


def test_a_parameter_that_drowns_the_tokens_is_found() -> None:
    draws = np.random.default_rng(2)
    params = {
        "tokens": jnp.asarray(0.02 * draws.standard_normal((32, WIDTH)), "float32"),
        "places": jnp.asarray(0.02 * draws.standard_normal((8, WIDTH)), "float32"),
        "head": weights()[0],
    }

    def function(params: Any, tokens: Any) -> Any:
        return sick.unit(params["tokens"][tokens] + params["places"]) @ params["head"]

    batch = sick.tokens(4, 8, 16), sick.tokens(4, 8, 16)
    loud = params | {"places": 50 * params["places"]}
    (only,) = gl.audit((loud, function), batch, loss).findings

    assert (only.kind, only.layer) == ("drowned", "places")
    # 32 rows of which some are read, and 8 places: the ratio of two estimates of one deviation.
    assert only.measured == pytest.approx(50, rel=0.5)
    assert gl.audit((params, function), batch, loss).findings == []
