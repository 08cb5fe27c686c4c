"""Gates that cannot learn, zeros that stay, one layer with all the norm, entries of another law."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.diagnosis import laws
from gradlab.diagnosis.examination import Finding
from tests.diagnosis import sick

WIDTH = 32


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def found(model: Any, batch: Any = None) -> list[Finding]:
    return gl.audit(model, batch or sick.labelled(16, WIDTH), sick.classified).findings


@pytest.mark.parametrize(("bias", "state"), [(30.0, "open"), (-30.0, "shut")])
def test_a_forget_gate_that_cannot_learn_is_found_and_opened(bias: float, state: str) -> None:
    first = found(sick.lstm(jnp.asarray(bias)), sick.sequences())[0]

    assert (first.kind, first.layer) == ("gate", "cell.bias")
    assert state in first.cause
    # Four times the slope of the logistic function, but for what weights of 1/√12 add to the bias.
    assert math.log(first.measured) == pytest.approx(math.log(4) - 30, abs=2)
    assert first.remedy is not None
    assert first.remedy.after > 0.5


def test_a_gate_that_remembers_for_long_is_healthy() -> None:
    steps = np.random.default_rng(0).uniform(1, 1000, 12)
    # Tallec and Ollivier 2018: biases for memories of up to 1000 steps.
    assert found(sick.lstm(jnp.log(steps)), sick.sequences()) == []
    assert found(sick.lstm(jnp.asarray(1.0)), sick.sequences()) == []


def zeroed(model: Any) -> Any:
    """The same, the last matrix of each branch at 0."""
    return eqx.tree_at(
        lambda m: [block.down.weight for block in m.blocks], model, replace_fn=jnp.zeros_like
    )


def test_a_zero_gate_before_a_zero_matrix_never_learns() -> None:
    first, *_ = found(zeroed(sick.gated(0.0)))

    assert (first.kind, first.layer) == ("no gradient", "blocks.*.down.weight")
    assert "blocks.*.gate" in first.cause
    assert first.remedy is not None
    assert ("no gradient", "blocks.*.gate") in {(f.kind, f.layer) for f in first.follows}


def test_a_zero_gate_alone_and_a_zero_matrix_alone_learn() -> None:
    assert found(sick.gated(0.0)) == []
    assert found(zeroed(sick.gated(1.0))) == []


def test_a_layer_that_holds_the_norm_is_found() -> None:
    first, *_ = found(sick.gated(1.0, loud=6))

    assert first.kind == "held norm"
    assert first.layer.startswith("blocks.6.")
    assert first.measured > 0.5
    # Its branch is brought to the size of the others, of whose norms each has a tenth.
    assert first.remedy is not None
    assert first.remedy.changes[0].call == "multiply"
    assert first.remedy.after == pytest.approx(0.1)
    assert found(sick.gated(1.0)) == []


@pytest.mark.parametrize("is_walk", [True, False])
def test_chance_holds_a_norm_as_rarely_as_it_is_told(is_walk: bool) -> None:
    draw, num, z = np.random.default_rng(0), 3000, 2.0
    steps = draw.standard_normal((num, 12))
    logs = np.cumsum(steps, axis=1) if is_walk else steps
    count = sum(len(laws.held_norms(row, z)) for row in logs)
    # Ten members that have two neighbours, each a test: five standard errors of a binomial count.
    chance = math.erfc(z / math.sqrt(2))
    assert count <= 10 * num * chance + 5 * math.sqrt(10 * num * chance)


def test_a_norm_that_stands_out_is_found_on_any_trend() -> None:
    noise = 0.1 * np.random.default_rng(1).standard_normal(12)
    for trend in (-0.5, 0.0, 0.5):
        logs = trend * np.arange(12) + noise
        assert laws.held_norms(logs, 4.0) == {}
        logs[5] += 8.0
        assert list(laws.held_norms(logs, 4.0)) == [5]


def law(at: float, odd: float | None = None) -> Any:
    """An MLP with weights cut off at so many standard deviations, one layer's elsewhere."""
    model = sick.mlp(6, 64)
    keys = jax.random.split(jax.random.key(1), 7)

    def drawn(k: int, weight: Any) -> Any:
        std = (2.0 if k < 6 else 1.0) ** 0.5 * 64**-0.5
        return sick.truncated(keys[k], weight.shape, std, odd if odd and k == 3 else at)

    weights = [drawn(k, layer.weight) for k, layer in enumerate(model.layers)]
    return eqx.tree_at(lambda m: [layer.weight for layer in m.layers], model, weights)


def test_a_truncation_at_100_sigma_among_truncated_layers_is_found() -> None:
    batch = sick.labelled(16, 64)
    (first,) = found(law(2.0, odd=100.0), batch)

    assert (first.kind, first.layer) == ("shape", "layers.3.weight")
    # A normal distribution's kurtosis, within five standard errors of 4096 entries.
    assert first.measured == pytest.approx(3, abs=5 * math.sqrt(24 / 4096))
    # Where all are alike there is nothing to find: cut off at 2, or at 100, which is nowhere.
    assert found(law(2.0), batch) == []
    assert found(law(100.0), batch) == []


def test_the_rows_that_a_batch_reads_have_the_gradient() -> None:
    embed = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)
    tokens = jnp.asarray([[1, 4, 4], [4, 1, 5]])

    def loss(model: Any, batch: Any) -> Any:
        return jnp.sum(model(batch)[..., 0])

    def function(params: Any, batch: Any) -> Any:
        return params["embed"][batch] @ params["readout"]

    params = {"embed": embed, "readout": jnp.eye(4)}
    (rows,) = gl.audit((params, function), tokens, loss).embeddings

    # Of the sum of first entries each row has one unit vector for each time that it is read.
    assert (rows.num_rows, rows.num_learning, rows.largest) == (6, 3, 4)
    # A log of at most log 3 is rounded once.
    np.testing.assert_allclose(np.exp(rows.log_norms), [0, 2, 0, 0, 3, 1], rtol=1.2e-7)
    assert rows.share == pytest.approx(9 / (4 + 9 + 1))
    assert str(rows) == ("embed: 3 of 6 rows have a gradient, row 4 has 64% of its squared norm")
