"""Exponents of the width, against networks that take the step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gradlab.theory import parametrisation
from gradlab.theory.parametrisation import STEP_RULES, change_exponents, scaling

WIDTHS = (64, 128, 256, 512)


def update(rule: str, gradient: Any) -> Any:
    if rule == "gradient":
        return -gradient
    if rule == "sign":
        return -np.sign(gradient)
    out, into = gradient.shape  # of one sample it has rank one
    return -gradient / np.linalg.norm(gradient) * np.sqrt(max(1, out / into))


def log_changes(rng: Any, n: int, rule: str, p: Any) -> Any:
    """Logs of the changes of h_1, h_2 and f for one sample, `(moved, 3)`, tanh between."""
    x, loss = rng.standard_normal(8), 1.0
    W, H = rng.standard_normal((n, 8)) / np.sqrt(8), rng.standard_normal((n, n)) / np.sqrt(n)
    r = rng.standard_normal((1, n)) * float(n) ** -p.readout
    h_1 = W @ x
    h_2 = H @ np.tanh(h_1)
    back_2 = loss * r[0] / np.cosh(h_2) ** 2
    back_1 = (H.T @ back_2) / np.cosh(h_1) ** 2
    gradients = np.outer(back_1, x), np.outer(back_2, np.tanh(h_1)), loss * np.tanh(h_2)[None]
    rates = p.first_rate, p.hidden_rate, p.last_rate
    steps = [update(rule, g) * float(n) ** -c for g, c in zip(gradients, rates, strict=True)]
    rows = []
    for moved in range(3):
        dW, dH, dr = (step * (k == moved) for k, step in enumerate(steps))
        d_1 = dW @ x
        d_2 = dH @ np.tanh(h_1) + H @ (d_1 / np.cosh(h_1) ** 2)
        d_f = dr @ np.tanh(h_2) + r @ (d_2 / np.cosh(h_2) ** 2)
        with np.errstate(divide="ignore"):
            rows.append([np.log(np.sqrt(np.mean(d**2))) for d in (d_1, d_2, d_f)])
    return rows


@pytest.mark.parametrize("rule", STEP_RULES)
@pytest.mark.parametrize("which", ["standard", "maximal update"])
def test_one_step_has_the_exponents_of_the_law(rule: str, which: str) -> None:
    p = scaling(which, rule)
    rng, num_draws = np.random.default_rng(0), 6
    logs = np.array([[log_changes(rng, n, rule, p) for _ in range(num_draws)] for n in WIDTHS])
    x = np.log(WIDTHS) - np.log(WIDTHS).mean()
    law = np.array([parametrisation.change_exponents(rule, p, moved) for moved in range(3)])
    moves = np.isfinite(law)
    with np.errstate(invalid="ignore"):
        found = np.tensordot(x, logs.mean(1), 1) / np.sum(x**2)
    # A size is a mean over n units, of relative error c/√n with c below 3 for one draw (a sum of
    # squares of products of normal numbers); at four standard errors, the smallest width for all.
    error = 4 * 3 / np.sqrt(WIDTHS[0] * num_draws) / np.sqrt(np.sum(x**2))
    assert np.all(np.abs(found - law)[moves] < error)
    assert error < 0.5
    assert np.isneginf(logs[:, :, ~moves]).all()


def test_the_standard_parametrisation_grows_and_the_maximal_update_keeps_all() -> None:
    assert parametrisation.total_exponents("sign", scaling("standard", "sign")) == (0.0, 1.0, 1.5)
    assert parametrisation.total_exponents("gradient", scaling("standard", "gradient")) == (
        -0.5,
        0.5,
        1.0,
    )
    for rule in STEP_RULES:
        assert parametrisation.total_exponents(rule, scaling("maximal update", rule)) == (
            0.0,
            0.0,
            0.0,
        )


def test_an_unknown_way_or_rule_is_named() -> None:
    with pytest.raises(ValueError, match="way is one of standard, maximal update, not 'mup'"):
        scaling("mup", "sign")
    for found in (scaling, lambda way, rule: change_exponents(rule, scaling(way, "sign"), 0)):
        with pytest.raises(ValueError, match="rule is one of gradient, sign, spectral, not 'adam'"):
            found("standard", "adam")
