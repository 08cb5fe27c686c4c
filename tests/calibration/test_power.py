"""What a mutation did is told apart, and weights that are 10 % off are noticed."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from gradlab.calibration import __main__, outcomes, power, variants
from gradlab.calibration.mutations import Mutation
from gradlab.calibration.outcomes import Outcome
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.experiment import loading
from gradlab.running import composition
from tests.toys import Toy


@pytest.mark.parametrize(
    ("errors", "expected"), [([1.0, 2.0, 4.0], 2.0), ([-1.0, -2.0, -4.0], 2.0), ([1.0], np.inf)]
)
def test_the_smallest_error_is_found_by_halving(errors: list[float], expected: float) -> None:
    assert power.smallest_noticed(errors, lambda error: abs(error) > 1.5) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["glorot_variance", "float_limits", "jacobian_product"])
def test_weights_ten_percent_off_are_noticed(project: Path, name: str) -> None:
    exp = loading.load(project / "experiments" / f"{name}.py")
    settings, cfg = composition.composed(exp, ["scale=smoke"])
    one = Rehearsal(exp, cfg)
    with jax.numpy_rank_promotion("allow"):
        (program,) = variants.programs(one, [])
        arrays = [program.arrays(settings.seed, factor=factor) for factor in (1.0, 1.1)]
        found = [one.claims(one.data(settings.seed, each)) for each in arrays]

    assert [all(claim.holds for claim in claims) for claims in found] == [True, False]


def test_a_function_is_mutated_where_it_is_not_called_by_another_that_is() -> None:
    def mutation(name: str, site: str) -> Mutation:
        return Mutation(name, {site: lambda honest: honest})

    standard = [mutation("more", "outer"), mutation("more", "inner"), mutation("less", "inner")]
    within, alone = frozenset(["outer"]), frozenset[str]()
    both = {"outer": [alone], "inner": [within]}

    assert power.by_themselves(standard, both) == [standard[0], standard[2]]
    assert power.by_themselves(standard, both | {"inner": [within, alone]}) == standard
    assert power.by_themselves(standard, {}) == []


def test_what_was_never_tried_comes_first_and_then_what_was_tried_longest_ago() -> None:
    found = [Mutation(name, {"site": lambda honest: honest}) for name in "abc"]
    known = {
        (name, "site"): Outcome(name, "site", outcomes.NOTICED, date=date)
        for name, date in (("a", "2026-02-01 00:00:00"), ("b", "2026-01-31 23:59:59"))
    }

    assert power.oldest_first(found, known) == found[::-1]


EXPERIMENT = '''"""How long is a product?"""

import gradlab as gl
from gradlab.lazy import jax, jnp, np


@gl.config
class Config:
    activation: str
    depth: int
    width: int
    sigma_w: float
    w: gl.Floats
    fail: str


def compute(cfg, key):
    chain = gl.ensembles.gaussian(key, cfg.depth, cfg.width, jnp.tanh, cfg.sigma_w, 0.0)
    linear = gl.ensembles.scalar(0.5, cfg.depth)
    norms = gl.jacobians.log_norms(linear, jnp.ones(1))
    return {
        "norm": gl.named(norms[-1]),
        "law": gl.named(cfg.depth * jnp.log(0.5)),
        "first": gl.named(chain.params.W[0, 0, 0]),
        "output": gl.named(chain(jnp.ones(cfg.width))[0]),
    }


def figure(data):
    raise NotImplementedError


def claims(data):
    yield gl.claim.everywhere("0.5 to the depth", data.norm, data.law, "x", rounding=1e-12)


FAULTS = {}
HARMLESS = {"chain.Chain.__call__": "no claim is about the output"}
'''


@pytest.mark.slow
def test_what_became_of_each_mutation_of_a_project_is_recorded(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.file.write_text(EXPERIMENT)
    monkeypatch.chdir(toy.project)

    assert __main__.calibrate(["power", "--minutes", "60", "--seed", "3"]) == 0
    one = json.loads(Path("results/power.json").read_text())["experiments"]["chaos"]
    became = {(out["mutation"], out["site"]): out["status"] for out in one["outcomes"]}
    assert one["smallest"] == outcomes.SIZES[0]
    assert became["a layer more", "jacobians.log_norms"] == outcomes.NOTICED
    assert became["a Jacobian transposed", "jacobians.log_norms"] == outcomes.NO_CHANGE
    assert became["a layer less", "chain.Chain.__call__"] == outcomes.HARMLESS
    assert became["a bias dropped", ""] == outcomes.NO_CHANGE
    assert {"the loss halved", "each draw used twice"} <= set(one["not_called"])
    assert became["each matrix used for two layers", ""] == outcomes.UNNOTICED
    assert not set(became.values()) & {outcomes.RAISES, outcomes.NOT_TRIED}

    assert __main__.calibrate(["power", "--minutes", "0", "--seed", "4"]) == 0
    again = json.loads(Path("results/power.json").read_text())["experiments"]["chaos"]
    kept = [out for out in again["outcomes"] if not out["mutation"].startswith("weights")]
    assert {(out["mutation"], out["site"]): out["status"] for out in kept}.items() <= became.items()
    assert outcomes.NOT_TRIED not in [out["status"] for out in kept]
