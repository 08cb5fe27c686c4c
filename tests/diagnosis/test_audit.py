"""The audit finds what was planted, where it was planted, and nothing in a healthy model."""

import fnmatch
import json
import math
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.diagnosis import command, record
from gradlab.diagnosis.audit import Audit
from gradlab.errors import BadInput
from tests.diagnosis import sick

# One structure for each: what is changed between cases are weights, so that little is compiled.
DEPTH, WIDTH = 24, 32


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


BATCH = (
    np.random.default_rng(0).standard_normal((16, WIDTH)).astype(np.float32),
    np.arange(16) % 10,
)


def relu(sigma_w: float = 2**0.5) -> Any:
    return sick.mlp(DEPTH, WIDTH, jax.nn.relu, sigma_w)


def audited(model: Any) -> Audit:
    return gl.audit(model, BATCH, sick.classified)


def test_a_healthy_model_has_no_finding() -> None:
    found = audited(relu())

    assert found.findings == []
    assert found.left_out == []
    assert "no finding" in str(found)
    assert max(map(len, str(found).splitlines())) <= 100


@pytest.mark.parametrize(
    ("where", "function", "kind", "layer"),
    [
        (lambda m: m.layers[5].weight, lambda w: 3 * w, "alike", "layers.5.weight"),
        (lambda m: m.layers[3].weight, lambda w: 0 * w, "alike", "layers.3.weight"),
        (lambda m: m.layers[4].bias, lambda b: b - 30, "alike", "layers.4.bias"),
        (lambda m: m.layers[6].weight, lambda w: w * jnp.nan, "not finite", "layers.6.weight"),
        (lambda m: m.layers[7].weight, lambda w: 0 * w + w[:1], "copies", "layers.7.weight"),
    ],
)  # fmt: skip
def test_a_fault_in_one_layer_is_named_and_its_remedy_helps(
    where: Any, function: Any, kind: str, layer: str
) -> None:
    first = audited(sick.changed(relu(), where, function)).findings[0]

    assert (first.kind, first.layer) == (kind, layer)
    assert first.remedy is not None
    assert abs(first.remedy.after - first.expected) <= 0.25 * max(first.expected, 1.0)


@pytest.mark.parametrize("sigma_w", [1.0, 1 / math.sqrt(3), 3.0])
def test_weights_of_another_size_are_measured_against_chi(sigma_w: float) -> None:
    first = audited(relu(sigma_w)).findings[0]

    # Half of the units are on, within their sampling error: chi = sigma_w²/2 a layer.
    spread = 1 / math.sqrt(WIDTH * DEPTH)
    assert first.kind == "gain"
    assert math.log(first.measured) == pytest.approx(math.log(sigma_w**2 / 2) / 2, abs=4 * spread)
    assert first.remedy is not None
    assert first.remedy.after == pytest.approx(1, abs=0.02)
    assert all(change.pattern == "layers.*.weight" for change in first.remedy.changes)


def test_what_follows_from_a_cause_stands_below_it() -> None:
    (only,) = audited(sick.changed(relu(), lambda m: m.layers[3].weight, lambda w: 0 * w)).findings

    assert {"flat", "no gradient"} <= {other.kind for other in only.follows}


def test_the_gradient_of_each_layer_is_that_of_jax() -> None:
    found = audited(relu())
    arrays, static = eqx.partition(relu(), eqx.is_inexact_array)
    gradients = jax.grad(lambda a: sick.classified(eqx.combine(a, static), BATCH))(arrays)
    norms = [float(jnp.linalg.norm(layer.weight)) for layer in gradients.layers]
    total = sum(n * n for n in norms) + sum(float(jnp.sum(b.bias**2)) for b in gradients.layers)

    # The sums of squares of a layer are rounded once an entry at most.
    shares = [row.share for row in found.layers]
    np.testing.assert_allclose(shares, np.square(norms) / total, rtol=WIDTH**2 * 1.2e-7)


def test_the_same_model_is_traced_once() -> None:
    traced = []

    def loss(model: Any, batch: Any) -> Any:
        traced.append(1)
        return sick.classified(model, batch)

    gl.audit(relu(), BATCH, loss)
    once = len(traced)
    gl.audit(relu(1.3), BATCH, loss)

    assert once == 1
    assert len(traced) == once


def test_what_a_limit_of_time_left_out_is_said() -> None:
    found = gl.audit(relu(1.0), BATCH, sick.classified, seconds=0)

    assert found.findings[0].remedy is None
    assert found.left_out == [f"remedies after 0 seconds: {len(found.findings)} findings have none"]


def test_what_if_measures_the_changed_model() -> None:
    trial = audited(relu(1.0)).what_if(gl.scale("layers.*.weight", 2**0.5))
    (row,) = [row for row in trial.rows if row[0] == "gain"]

    assert row[3] / row[2] == pytest.approx(2**0.5, rel=1e-3)
    assert "gl.scale" in str(trial)


def test_top_singular_values_are_those_of_the_jacobian() -> None:
    found = audited(relu())
    top = found.top_singular_values(3, since="layers.0.weight", until="layers.24.weight")
    model = relu()

    def tail(h: Any) -> Any:
        for layer in model.layers[1:]:
            h = layer(jax.nn.relu(h))
        return h

    states = jax.vmap(model.layers[0])(jnp.asarray(BATCH[0]))
    values = np.sort(np.linalg.svd(jax.vmap(jax.jacobian(tail))(states), compute_uv=False).ravel())
    # What bounds the error in exact arithmetic, and the rounding of 24 products in float32.
    rounding = 24 * WIDTH * 1.2e-7 * values[-1]
    assert np.all(np.abs(top.values - values[::-1][:3]) <= top.bounds + rounding)


def test_names_and_shapes_of_other_kinds_of_model(project: Path) -> None:
    del project
    params = {"one": jnp.ones((4, 3)) * jnp.arange(1.0, 4), "two": jnp.eye(3)[:, :2]}

    def function(p: Any, x: Any) -> Any:
        return jnp.tanh(x @ p["one"]) @ p["two"]

    def square(m: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(m(x)))

    rows = gl.audit((params, function), jnp.ones((5, 4)), square).layers
    chain = gl.chain.linear(jnp.stack([jnp.eye(3), 2 * jnp.eye(3)]))
    others = gl.audit(chain, jnp.ones(3), square).layers

    assert [(row.layer, row.phi) for row in rows] == [("one", "tanh"), ("two", "")]
    assert [row.layer for row in others] == ["layers.0", "layers.1"]
    assert others[1].output == pytest.approx(2)


def test_a_list_that_has_lost_its_activations_is_refused() -> None:
    with pytest.raises(gl.BadInput, match=r"gl\.audit\(mlp, batch, loss\)"):
        gl.audit(list(relu().layers), BATCH, sick.classified)


@pytest.mark.parametrize("loss", [lambda _m, _b: jnp.ones(3), lambda _m: 0.0, 3.0])
def test_a_loss_that_is_none_is_refused(loss: Any) -> None:
    with pytest.raises(gl.BadInput, match="loss"):
        gl.audit(relu(), BATCH, loss)


def test_a_saved_audit_keeps_the_schema_and_is_compared(tmp_path: Path) -> None:
    healthy, ill = audited(relu()), audited(relu(1.0))
    path = healthy.save(tmp_path / "audit.json")
    saved = json.loads(path.read_text())
    page = ill.save(tmp_path / "audit.html").read_text()

    assert set(saved) == set(record.schema()["required"])
    assert set(saved["layers"][0]) == set(
        record.schema()["properties"]["layers"]["items"]["required"]
    )
    assert healthy.compare(path).exit_code == 0
    assert ill.compare(path).new[0] == ("gain", "layers.*.weight")
    assert ill.compare(path).exit_code == 1
    assert "gl.scale" in page
    assert "http://" not in page


def make_model() -> Any:
    return relu(), BATCH, sick.classified


def test_the_command_has_an_exit_status(capsys: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"

    assert command.command(["tests.diagnosis.test_audit:make_model", "--save", str(path)]) == 0
    assert "no finding" in capsys.readouterr().out
    assert path.exists()


def make_error() -> Any:
    raise ZeroDivisionError("no reason")


def make_narrow() -> Any:
    return relu(), (BATCH[0][:, :-1], BATCH[1]), sick.classified


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.at.all:make", "The module nowhere.at.all cannot be imported"),
        ("tests.diagnosis.test_audit:none", 'has no "none"'),
        ("tests.diagnosis.test_audit:DEPTH", "is a int; it must be a function"),
        (":make", "names no function"),
        (f"{__name__}:{make_error.__name__}", "raised ZeroDivisionError: no reason (test_audit"),
        (f"{__name__}:{make_narrow.__name__}", "raised TypeError"),
    ],
)
def test_what_the_command_cannot_audit_has_a_status_of_its_own(
    name: str, told: str, capsys: Any
) -> None:
    assert command.command([name]) == 2
    message = capsys.readouterr().err
    assert message.startswith("gradlab audit: ")
    assert message.count("\n") == 1
    assert told in message


@pytest.mark.parametrize(
    ("batch", "loss", "told"),
    [
        ("text", sick.classified, "The batch holds a str"),
        ((BATCH[0][:0], BATCH[1][:0]), sick.classified, "The batch is empty"),
        (BATCH, lambda *_: None, "The loss returns a NoneType"),
    ],
)
def test_a_batch_or_a_loss_that_is_none_is_refused(batch: Any, loss: Any, told: str) -> None:
    with pytest.raises(BadInput, match=told):
        gl.audit(relu(), batch, loss)


@pytest.mark.verify
@pytest.mark.parametrize("name", sorted(sick.faults()))
def test_every_planted_fault_is_the_first_finding(name: str) -> None:
    make, kind, layer = sick.faults()[name]
    first = gl.audit(*make()).findings[0]

    assert fnmatch.fnmatch(first.kind, kind)
    assert fnmatch.fnmatch(first.layer, layer)
    assert first.remedy is not None


@pytest.mark.verify
@pytest.mark.parametrize("name", sorted(sick.healthy()))
def test_no_healthy_model_has_a_finding(name: str) -> None:
    assert gl.audit(*sick.healthy()[name]()).findings == []
