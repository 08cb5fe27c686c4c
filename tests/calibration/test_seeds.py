"""Failures on fresh seeds are held against what is stated: only too many contradict it."""

import itertools
import json
import math
from pathlib import Path

import pytest

import gradlab as gl
from gradlab.calibration import __main__, seeds
from gradlab.calibration.seeds import Count, Seeds
from tests.toys import Toy


def claim(sentence: str, holds: bool, chance: float = 0.0) -> gl.Claim:
    return gl.Claim(sentence, 0.0 if holds else 1.0, 0.0, {}, "source", chance=chance)


def test_each_claim_is_counted_in_the_runs_that_made_it() -> None:
    found = seeds.counts(
        [
            (5, [claim("a", True, 0.125), claim("b", False)]),
            (6, [claim("a", False, 0.5)]),
            (7, [claim("a", False, 0.125), claim("b", True)]),
        ]
    )

    # Of "a" the mean of what was stated.
    assert found == [Count("a", 3, 2, 0.25, (6, 7)), Count("b", 2, 1, 0.0, (5,))]


def test_the_p_value_is_the_binomial_tail() -> None:
    tail = sum(math.comb(50, k) * 0.02**k * 0.98 ** (50 - k) for k in range(3, 51))

    assert math.isclose(Count("s", 50, 3, 0.02).p_value, tail, rel_tol=1e-9)
    assert Count("s", 50, 0, 0.02).p_value == 1.0
    assert Count("s", 50, 1, 0.0).p_value == 0.0


def test_the_p_value_of_all_claims_is_that_of_the_sum_of_their_failures() -> None:
    every = [Count("a", 3, 1, 0.1), Count("b", 2, 1, 0.3)]
    tail = 0.0
    for outcome in itertools.product([0, 1], repeat=5):
        chances = [0.1] * 3 + [0.3] * 2
        weight = math.prod(p if hit else 1 - p for p, hit in zip(chances, outcome, strict=True))
        tail += weight * (sum(outcome) >= 2)

    assert math.isclose(seeds.p_value_of_all(every), tail, rel_tol=1e-9)
    assert seeds.p_value_of_all([Count("a", 3, 0, 0.1)]) == 1.0


def test_as_many_failures_as_stated_are_no_contradiction_and_far_more_are() -> None:
    found = {
        "right": Seeds(200, (Count("a", 200, 3, 0.01), Count("b", 200, 0, 0.0))),
        "wrong": Seeds(200, (Count("c", 200, 12, 0.01), Count("d", 200, 1, 0.0))),
    }

    assert [(name, count.sentence) for name, count in seeds.beyond(found)] == [
        ("wrong", "c"),
        ("wrong", "d"),
    ]
    assert "| wrong: c | 200 | 12 | 0.01 | more often than stated |" in seeds.counts_page(found)
    still = {"still": Seeds(1, (Count("a", 1, 0, 0.0),), draws=False)}
    assert "| still | draws nothing | 1 | 0 | 0 |" in seeds.counts_page(still)


@pytest.mark.slow
def test_the_record_of_a_project_names_its_seed_and_holds_every_claim(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy.project)
    command = ["seeds", "chaos", "--minutes", "0", "--seed", "3"]

    assert __main__.calibrate(command) == 0
    made = json.loads(Path("results/seeds.json").read_text())
    assert made["experiments"]["chaos"]["made"]["seed"] == 3
    assert made["experiments"]["chaos"]["num_seeds"] == 2
    assert [one["failed"] for one in made["experiments"]["chaos"]["claims"]] == [0, 0]
    assert "`python -m gradlab.calibration seeds chaos --scale smoke --seed 3`" in Path(
        "results/seeds.md"
    ).read_text(encoding="utf-8")


def test_what_a_record_says_is_what_was_recorded() -> None:
    found = Seeds(9, (Count("a", 9, 1, 0.25, (6,)), Count("b", 2, 0, 0.0)), draws=False)
    plain = json.loads(json.dumps(seeds.counts_record({"toy": found})))["experiments"]["toy"]

    assert seeds.restored(plain) == found


def test_an_experiment_that_there_is_not_is_one_sentence(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.project)

    assert __main__.calibrate(["seeds", "order"]) == 1
    assert capsys.readouterr().err == ("error: experiment 'order' does not exist; allowed: chaos\n")
