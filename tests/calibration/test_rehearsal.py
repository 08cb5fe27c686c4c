"""A rehearsal is the run that leaves files, without the files."""

import itertools

import jax
import numpy as np

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
    assert [claim.sentence for claim in one.judged(4)] == [
        "no neuron leaves [-1, 1]",
        "w squared is a square",
    ]
