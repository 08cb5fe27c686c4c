"""A residual stream that is added twice is found, and added once by the remedy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gradlab as gl
from gradlab.diagnosis import counting
from gradlab.errors import BadInput
from tests.diagnosis import sick

DEPTH, WIDTH = 8, 16


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def audited(sum_: Callable[[Any, Any], Any]) -> Any:
    plain = sick.residual_mlp(DEPTH, WIDTH)
    params = [{"up": up.weight, "down": down.weight} for up, down in plain.blocks]

    def function(blocks: Any, x: Any) -> Any:
        for block in blocks:
            x = sum_(x, jax.nn.relu(sick.unit(x) @ block["up"].T) @ block["down"].T)
        return x

    def loss(model: Any, batch: Any) -> Any:
        return jnp.mean(sick.unit(model(batch))[:, 0])

    batch = jax.random.normal(jax.random.key(1), (8, WIDTH))
    return gl.audit((params, function), batch, loss)


@pytest.mark.parametrize(
    "sum_", [lambda x, f: x + (x + f), lambda x, f: 2 * x + f, lambda x, f: (x + x) + f]
)
def test_a_stream_added_twice_is_found_and_added_once(sum_: Callable[[Any, Any], Any]) -> None:
    audit = audited(sum_)
    first = audit.findings[0]

    assert (first.kind, first.layer, first.measured) == ("doubled stream", "*.down", 2.0)
    assert str(first.remedy) == 'gl.single_stream("*.down")'
    assert first.remedy.after == 1.0
    # The changed model is the one whose blocks add the stream once: one loss to some roundings.
    once = audited(lambda x, f: x + f)
    assert once.findings == []
    assert first.remedy.loss_after == pytest.approx(once.loss, rel=DEPTH * WIDTH * 1.2e-7)
    with pytest.raises(BadInput, match="added more than once"):
        once.what_if(gl.single_stream("*.down"))


def test_a_product_is_multiplied_and_its_weights_are_not() -> None:
    audit = audited(lambda x, f: x + f)
    with pytest.raises(BadInput, match="fits no layer"):
        audit.what_if(gl.multiply("nowhere", 2.0))
    halved = audit._facts_of((gl.multiply("0.down", 0.5),), 0)

    assert halved.weights == audit.facts.weights
    before, after = (f.measured.residuals["log_branch"][0] for f in (audit.facts, halved))
    assert after - before == pytest.approx(float(jnp.log(0.5)), abs=1e-6)


def test_the_tests_that_are_counted_are_those_that_are_made() -> None:
    facts = audited(lambda x, f: x + f).facts
    # Two roles of eight matrices: alike and shape one each, held norm six; phi in each block.
    assert counting.num_tests(facts) == 16 + 16 + 12 + DEPTH
