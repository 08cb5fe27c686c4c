"""One layer after another taken into `L diag(d) U`, and the ratios of its scales."""

import ast
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import gradlab
from gradlab.arithmetic.scaled import Scaled
from gradlab.measuring import product_svd
from gradlab.measuring.product_svd import extended, factors, ratios, thresholds, trial
from gradlab.models import chain


def scales(exponents: Any, alive: Any = True) -> Any:
    mantissa = jnp.where(jnp.asarray(alive), jnp.ones(len(exponents)), 0)
    return Scaled(mantissa, jnp.asarray(exponents, jnp.int32))


def test_a_ratio_that_fell_and_rises_again_is_seen_as_far_as_it_does() -> None:
    since = ratios.start(jnp.zeros(2))
    for exponents in ([0, -40], [0, -30], [0, 5], [0, 0]):
        since = ratios.after_layer(since, scales(exponents), jnp.ones(2))
    # From 40 behind to level; beyond level it is no rise.
    np.testing.assert_array_equal(since.rise, [40, 5])


def test_no_ratio_to_a_column_that_is_no_direction_rises() -> None:
    since = ratios.start(jnp.zeros(3))
    for k in range(5):
        d = scales([10 * k, -10 * k, -3], alive=[True, True, k == 0])
        since = ratios.after_layer(since, d, jnp.array([1, 1, 1.0 * (k == 0)]))
    np.testing.assert_array_equal(since.rise, [0, 0, 0])


def test_the_ratio_of_a_column_that_is_no_direction_rises_as_far_as_it_has_grown() -> None:
    since, exponent = ratios.start(jnp.zeros(2)), 0
    for growth in (-9, 30, -2):
        exponent += growth
        since = ratios.after_layer(since, scales([0, exponent], alive=[True, False]), jnp.ones(2))
    np.testing.assert_array_equal(since.rise, [30, 0])
    # Without a pivot it holds nothing, and begins anew.
    for growth, pivot in ((-50, 0.0), (20, 1.0), (0, 1.0)):
        exponent += growth
        d = scales([0, exponent], alive=[True, False])
        since = ratios.after_layer(since, d, jnp.array([1, pivot]))
    np.testing.assert_array_equal(since.rise, [30, 0])


def test_a_column_that_is_no_direction_grows_by_its_pivots() -> None:
    """Of a layer with two units dead, two columns are left; the next layer brings them back."""
    rng = np.random.default_rng(0)
    layers = rng.normal(size=(2, 4, 4)) * np.array([[1, 1, 0, 0], [1, 1, 1, 1]])[:, :, None]
    now = factors.start(jnp.zeros(4))
    for J in layers:
        before = now
        found = trial.of_layer(chain.apply_linear, jnp.asarray(J), jnp.zeros(4), before)
        now = trial.accepted(before, found)
    np.testing.assert_array_equal(now.d.mantissa != 0, [1, 1, 0, 0])
    pivots = np.abs(np.linalg.qr(layers[1] @ before.L)[1].diagonal())
    assert abs(np.prod(pivots) / np.abs(np.prod(np.diagonal(found.R))) - 1) < 1e-13
    grown = now.d.exponent - before.d.exponent
    np.testing.assert_array_equal(grown[2:], np.floor(np.log2(np.abs(np.diagonal(found.R))))[2:])


def test_a_trial_tells_a_layer_that_is_nearly_singular_from_one_that_is_not() -> None:
    U, V = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 4, 4)))[0]
    for smallest, is_enough in ((1e-1, True), (1e-8, False), (0, False)):
        J = jnp.asarray((U * [1, 1, 1, smallest]) @ V)
        now = factors.start(jnp.zeros(4))
        found = trial.of_layer(chain.apply_linear, J, jnp.zeros(4), now)
        assert bool(found.error <= thresholds.LAYER_BUDGET) == is_enough


@pytest.mark.parametrize("level", [thresholds.REFINED, thresholds.DOUBLED])
def test_a_turn_of_the_range_is_carried_on_as_the_columns_themselves_are(level: Any) -> None:
    """`J L_0 (I + F) = L (I + X) R`; two directions of four, and four columns."""
    rng = np.random.default_rng(0)
    first, J = rng.normal(size=(4, 2)), rng.normal(size=(4, 4))
    state = jnp.zeros(2), extended.start(jnp.zeros(2)), ratios.start(jnp.zeros(2))

    def advance(J: Any, x: Any, before: Any, since: Any) -> Any:
        return extended.advance(
            chain.apply_linear, jnp.asarray(J), x, before, since, jnp.asarray(level), 2, True
        )

    x, after = advance(first, *state)
    assert after.extended.factors.L.shape == (4, 4)
    np.testing.assert_array_equal(after.extended.factors.d.mantissa != 0, [1, 1, 0, 0])
    # What rounding has put out of the range, and nothing else.
    assert 0 < np.abs(after.extended.turn[2:, :2]).max() < 1e-16
    assert not after.extended.turn[:2].any()
    assert not after.extended.turn[:, 2:].any()

    F = np.zeros((4, 4))
    F[2:, :2] = 1e-6 * rng.normal(size=(2, 2))
    turned = after.extended._replace(turn=jnp.asarray(F))
    L_0 = np.asarray(after.extended.factors.L)
    _, after = advance(J, x, turned, after.ratios)
    step = after.step
    np.testing.assert_allclose(J @ L_0[:, step.order], step.L @ step.R * scale(J, step), atol=1e-14)
    R = np.asarray(step.R)
    X = R @ F[step.order][:, step.order] @ np.linalg.inv(R)
    # Rounding of numbers of 1e-6, and of what is turned anew, in half as many digits more.
    np.testing.assert_allclose(after.extended.turn[2:, :2], X[2:, :2], rtol=0, atol=1e-17)
    assert abs(after.largest_turn - np.abs(X[:, :2]).max()) < 1e-17


def scale(J: Any, step: Any) -> Any:
    """The power of two by which a layer was divided."""
    return np.linalg.norm(J) / np.linalg.norm(step.J)


def imported(path: Any) -> Any:
    """The modules that a file names in `import` and `from ... import`, with what it takes there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_what_is_outside_the_room_imports_only_what_the_room_offers() -> None:
    package = Path(gradlab.__file__).parent
    room = package / "measuring" / "product_svd"
    allowed = {f"gradlab.measuring.product_svd.{name}" for name in product_svd.__all__}
    seen = {
        name
        for path in package.rglob("*.py")
        if room not in path.parents
        for name in imported(path)
        if name.startswith("gradlab.measuring.product_svd.")
    }
    assert seen
    assert seen <= allowed


def test_the_page_gives_every_threshold_with_its_value(project: Any) -> None:
    lines = (project / "docs" / "product_svd.md").read_text().splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `")]
    shown = {cells[1].strip(" `"): cells[2].strip(" `") for cells in rows}
    values = {name: value for name, value in vars(thresholds).items() if name.isupper()}
    assert set(values) <= set(shown)
    for name, value in values.items():
        numbers = [float(number) for number in shown[name].split(",")]
        np.testing.assert_allclose(numbers, np.atleast_1d(value), rtol=1e-15)
