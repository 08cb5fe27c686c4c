"""A record of outcomes is read as it was written, and tells of a law that was moved."""

import json
from pathlib import Path

import numpy as np

from gradlab.calibration import mutations, outcomes, power
from gradlab.calibration.outcomes import Outcome, Power
from gradlab.experiment import loading


def test_what_cannot_matter_is_a_mutation_or_a_function_that_there_is(
    experiment_file: Path,
) -> None:
    known = {mutation.name for mutation in mutations.standard()}
    known |= {f"weights {percent:g} % too large" for percent in power.PERCENT}
    known |= {target for mutation in mutations.standard() for target in mutation.sites}

    assert loading.load(experiment_file).harmless.keys() <= known


def test_what_a_record_says_is_what_was_recorded() -> None:
    outcome = Outcome("a layer more", "chain.states", outcomes.HARMLESS, ("why",), ("law",), "2026")
    for smallest in (None, np.inf, 0.01):
        found = Power(3, ("s",), (outcome,), ("a bias dropped",), smallest)
        record = outcomes.as_record({"toy": found})
        assert outcomes.restored(json.loads(json.dumps(record))["experiments"]["toy"]) == found


def test_a_mutation_that_moves_a_law_makes_the_record_wrong() -> None:
    outcome = Outcome("a layer more", "chain.states", outcomes.NOTICED, ("s",), ("log10_law",))
    found = {"toy": Power(1, (), (outcome,), ("a bias dropped",), np.inf)}

    assert outcomes.wrong(found) == ["toy: a layer more in chain.states moves log10_law"]
    assert (
        json.loads(json.dumps(outcomes.as_record(found)))["experiments"]["toy"]["smallest"] == "inf"
    )
    text = outcomes.as_page(found)
    assert "never called: a bias dropped." in text
    assert "| a layer more (`chain.states`) | noticed | s |" in text
    assert "| toy | above 42 % | 1 | none |  |" in text
