"""A card tells what its claims are worth, from the records, whatever state these are in."""

import json
from pathlib import Path

import pytest

from gradlab.page import build, gallery
from tests.pages import EVIL, words, write_experiment


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A project with one experiment, `plain`."""
    write_experiment(tmp_path, "plain", '"""Is one one?"""\n')
    (tmp_path / "results").mkdir()
    return tmp_path


def index(project: Path) -> str:
    return build.index(gallery.cards(project, project / "results"))


POWER = {
    "experiments": {
        "plain": {
            "made": {"date": "2026-01-02 03:04:05", "scale": "smoke"},
            "seed": 7,
            "smallest": 0.00412,
            "outcomes": [
                {"mutation": name, "site": site, "status": status, "claims": claims}
                for name, site, status, claims in (
                    ("weights 1 % too large", "", "noticed", ["one is one"]),
                    ("a bias dropped", "", "noticed", [f"one is {EVIL}"]),
                    ("a layer more", "chain.states", "noticed", ["one is one"]),
                    ("a layer more", "jacobians.product", "not noticed", []),
                    ("the loss halved", "training.loss", "changes nothing", []),
                    ("a layer less", "chain.states", "cannot matter", ["it is of no account"]),
                )
            ],
        }
    },
}
SEEDS = {
    "experiments": {
        "plain": {
            "num_seeds": 200,
            "claims": [{"chance": 6e-5, "failed": 1}, {"chance": 4e-5, "failed": 0}],
        }
    }
}


def test_a_card_tells_what_its_claims_are_worth(lab: Path) -> None:
    (lab / "results" / "power.json").write_text(json.dumps(POWER))
    (lab / "results" / "seeds.json").write_text(json.dumps(SEEDS))
    full = {"num_seeds": 9, "draws": True, "claims": [{"chance": 1e-3, "failed": 0}]}
    (lab / "results" / "seeds_full.json").write_text(json.dumps({"experiments": {"plain": full}}))
    page = index(lab)
    text = words(page)

    assert "Would notice weights off by 0.41 %; a bias dropped." in text
    assert "Not: a layer more (jacobians.product)." in text
    assert "a layer less: it is of no account." in text
    assert "By chance a claim fails at most once in 10,000 runs: 1 failure on 200 fresh" in text
    assert "At full scale at most once in 1,000 runs: 0 failures on 9 fresh seeds." in text
    assert "wrong at a time (2026-01-02, scale=smoke, seed=7)" in text
    assert "the loss halvedtraining.losschanges nothing" in text
    assert "<script>window.hacked" not in page


def test_a_card_tells_that_nothing_is_drawn(lab: Path) -> None:
    still = {"num_seeds": 1, "draws": False, "claims": [{"chance": 0.0, "failed": 0}]}
    for record in ("seeds", "seeds_full"):
        path = lab / "results" / f"{record}.json"
        path.write_text(json.dumps({"experiments": {"plain": still}}))

    assert words(index(lab)).count("It draws nothing: chance breaks no claim.") == 1


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"experiments": {"plain": {"claims": 3}}}'])
def test_a_damaged_record_of_power_or_seeds_is_told_and_a_missing_one_is_not(
    lab: Path, content: str
) -> None:
    assert "Would notice" not in words(index(lab))
    for study in ("power", "seeds"):
        (lab / "results" / f"{study}.json").write_text(content)
    text = words(index(lab))

    assert "power.json is damaged" in text
    assert "seeds.json is damaged" in text
    assert "Is one one?" in text
