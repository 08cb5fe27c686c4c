"""A rehearsal is the run that leaves files, without the files."""

import itertools
from dataclasses import replace
from types import ModuleType

import jax
import numpy as np

import gradlab as gl
from gradlab.calibration import rehearsal
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.experiment import loading
from gradlab.running import composition
from tests.toys import Toy


def test_seeds_are_other_ones_for_each_experiment_and_entropy_and_the_same_again() -> None:
    def some(entropy: int, name: str) -> list[int]:
        return list(itertools.islice(rehearsal.fresh_seeds(entropy, name), 5))

    drawn = [some(1, "a"), some(2, "a"), some(1, "b")]
    assert some(1, "a") == drawn[0]
    assert len(set(np.ravel(drawn))) == 15


def test_a_trial_has_the_data_and_the_claims_of_the_run_of_its_seed(toy: Toy) -> None:
    assert toy.run("scale=smoke", "seed=4").status == 0
    exp = loading.load(toy.file)
    _, cfg = composition.composed(exp, ["scale=smoke"])
    one = Rehearsal(exp, cfg)
    data = one.data(4, jax.jit(exp.module.compute)(one.arguments, jax.random.key(4)))

    assert data.identical(toy.data("scale=smoke,seed=4"))
    again = one.data(5, jax.jit(exp.module.compute)(one.arguments, jax.random.key(5)))
    assert toy.run("scale=smoke", "seed=5").status == 0
    assert again.identical(toy.data("scale=smoke,seed=5"))  # though only the first went to disk
    assert [claim.sentence for claim in one.judged(4)] == [
        "no neuron leaves [-1, 1]",
        "w squared is a square",
    ]


def test_an_axis_or_a_format_of_another_run_is_not_that_of_the_first(toy: Toy) -> None:
    exp = loading.load(toy.file)
    _, cfg = composition.composed(exp, ["scale=smoke"])
    one = Rehearsal(exp, cfg)

    def places(*at: float, dtype: str = "float64") -> list[float]:
        held = np.array(at, dtype)
        data = one.data(1, {"at": gl.named(held, "at"), "x": gl.named(held, "at")})
        assert data["x"].dtype == dtype
        assert data["at"].values.tolist() == data["x"].values.tolist()
        return data["x"].values.tolist()

    assert places(1.0, 2.0) == [1.0, 2.0]
    assert places(1.0, 3.0) == [1.0, 3.0]
    assert places(1.0, 3.0, 5.0) == [1.0, 3.0, 5.0]
    assert places(1.0, 2.0, dtype="float32") == [1.0, 2.0]


def test_an_experiment_that_leaves_its_key_alone_draws_nothing(toy: Toy) -> None:
    exp = loading.load(toy.file)
    _, cfg = composition.composed(exp, ["scale=smoke"])
    assert Rehearsal(exp, cfg).draws

    still = ModuleType("still")
    still.__dict__.update(
        vars(exp.module) | {"compute": lambda cfg, _: {"w": gl.named(cfg.w, "w")}}
    )
    assert not Rehearsal(replace(exp, module=still), cfg).draws
