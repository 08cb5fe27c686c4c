"""The lesson as text: every number traced, what is missing said, experiments come and go."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import lesson, loading
from gradlab.page import __main__, build, gallery, offers
from gradlab.page.evidence import Evidence
from gradlab.page.offers import Offered, Offers, Place
from tests.pages import EVIL, claim, words, write_experiment

W, LAYER = np.array([0.5, 1.0, 2.0]), np.arange(1, 2001)


def chain(_: xr.Dataset) -> lesson.Chain:
    log10 = np.log10(W)[:, None] * LAYER
    return {
        "w": lesson.exact(W),
        "layer": LAYER.tolist(),
        "log10": lesson.exact(log10),
        "views": [100, 2000],
    }


def format_ends(w: np.ndarray = W, formats: list[str] | None = None) -> lesson.FormatEnds:
    depths = np.stack([10.0 * w, 20.0 * w])
    return {
        "formats": formats or ["float16", "float64"],
        "w": lesson.exact(w),
        "first_zero": lesson.exact(depths),
        "first_infinite": lesson.exact(depths + 1),
        "first_wrong": lesson.exact(np.full_like(depths, math.inf)),
        "edges": [{"format": "float64", "floor": -324.0, "ceiling": None}],
    }


def offering(name: str, **parts: Any) -> gallery.Card:
    """The card of an experiment that has been run and offers these parts."""
    run = gallery.Run("", name, data=xr.Dataset())
    return gallery.Card(
        name, "?", "", f"python experiments/{name}.py", run, (), lesson.Offer(**parts)
    )


def drawn(*cards: gallery.Card) -> dict[str, offers.Drawn]:
    return offers.figures(build.offered(cards))


def test_text_in_the_data_of_a_figure_cannot_end_its_script() -> None:
    payload = format_ends(formats=[EVIL, "float64"])
    page = build.index([offering("e", figures={"chain": chain, "format ends": lambda _: payload})])
    assert "<script>window.hacked" not in page
    assert "\\u003cscript\\u003ewindow.hacked" in page


def test_arrays_travel_bit_for_bit() -> None:
    values = np.array([[0.1, -1e-300], [math.inf, math.nan]])
    packed = json.loads(json.dumps(lesson.exact(values)))
    np.testing.assert_array_equal(lesson.unpacked(packed), values)


def test_arrays_to_so_many_decimals_are_rounded_once() -> None:
    packed = lesson.decimals([0.1234, -0.1236, math.inf, -math.inf, math.nan], 3)
    found = lesson.unpacked(json.loads(json.dumps(packed)))
    np.testing.assert_array_equal(found, [0.123, -0.124, math.inf, -math.inf, math.nan])


def test_what_nobody_offers_is_said_and_not_drawn() -> None:
    found = drawn()
    assert {figure.payload for figure in found.values()} == {None}
    assert found["chain"].problem == "no experiment here offers the figure 'chain'"
    assert not found["chain"].command


def test_an_experiment_without_dataset_is_told_with_its_command() -> None:
    card = offering("e", figures={"chain": chain})
    card = dataclasses.replace(card, run=gallery.Run("", "e"))
    (figure,) = [figure for figure in drawn(card).values() if figure.experiment]
    assert (figure.problem, figure.command) == ("e has no dataset yet", "python experiments/e.py")


def test_formats_end_on_the_weights_of_the_chain() -> None:
    """Weights in another order, one that the chain lacks, and one of the chain's missing."""
    ends = format_ends(np.array([2.0 * (1 + 1e-12), 0.7, 0.5]))
    card = offering("a", figures={"format ends": lambda _: ends})
    found = drawn(card, offering("b", figures={"chain": chain}))["chain"]
    assert found.payload
    zero = lesson.unpacked(found.payload["zero"])
    np.testing.assert_allclose(zero, [[5, math.nan, 20], [10, math.nan, 40]], rtol=1e-9)
    assert found.payload["edges"] == ends["edges"]


def test_a_chain_is_drawn_without_the_ends_of_formats() -> None:
    card = offering("b", figures={"chain": chain})
    assert drawn(card)["chain"].payload
    assert "no experiment here offers the figure 'format ends'" in words(build.lesson_page([card]))


def lacking(_: xr.Dataset) -> lesson.Payload:
    return {"w": lesson.exact(W)}


def unfit(data: xr.Dataset) -> lesson.Payload:
    return {**chain(data), "views": [np.int32(100)]}


def broken(data: xr.Dataset) -> lesson.Payload:
    return {"w": lesson.exact(data.never_saved)}


def not_a_number(data: xr.Dataset) -> lesson.Payload:
    return {**chain(data), "views": [math.nan]}


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (lacking, "layer, log10, views"),
        (broken, "never_saved"),
        (unfit, "int32"),
        (not_a_number, "JSON"),
    ],
)
def test_a_payload_that_cannot_be_drawn_is_told(
    payload: Callable[[xr.Dataset], lesson.Payload], why: str
) -> None:
    card = offering("e", figures={"chain": payload})
    figure = drawn(card)["chain"]
    assert figure.payload is None
    assert "the dataset of e lacks what the figure 'chain' needs" in figure.problem
    assert why in figure.problem
    assert "There is nothing to show yet" in words(build.index([card]))


def test_a_place_that_is_not_there_is_told_in_one_sentence() -> None:
    card = offering("e", figures={"chian": chain}, numbers={"left belwo one": lesson.at("a")})
    figure, number = build.offered([card]).notes
    assert figure.startswith(
        "LESSON of 'e': the figure 'chian' is not known; did you mean 'chain'?"
    )
    assert "did you mean 'left below one'?" in number
    assert "left belwo one" in words(build.lesson_page([card]))


def test_a_place_that_two_offer_goes_to_the_first_that_has_a_dataset() -> None:
    parts: dict[str, Any] = {
        "figures": {"chain": chain},
        "claims": {"limit at one": "1", "limit above one": "2"},
    }
    waiting = offering("A", **parts)
    waiting = dataclasses.replace(waiting, run=gallery.Run("", "A"))
    found = build.offered([offering("b", **parts), waiting, offering("a", **parts)])
    assert {offered.experiment for offered in found.places.values()} == {"a"}
    assert found.notes == (
        "'a' and 'b' and 'A' offer the same places (figure 'chain'; "
        "claims 'limit at one', 'limit above one'); shown is what 'a' offers",
    )


OFFER = '"""Why?"""\nimport gradlab as gl\nConfig = compute = figure = claims = None\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{OFFER}LESSON = {{}}", "LESSON of 'odd' is of type dict; allowed: gl.lesson.Offer(...)"),
        (f"{OFFER}LESSON: object = gl.lesson.nothing", "AttributeError"),
        (f"{OFFER}LESSON = gl.lesson.at('a', how='sum')", "how 'sum' is not known"),
        ("LESSON = None", "BadInput: experiment 'odd' lacks Config, compute, figure, claims"),
        ("LESSON = None\nraise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_an_offer_that_cannot_be_read_is_told_and_the_pages_are_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    why: str,
) -> None:
    write_experiment(tmp_path, "odd", text)
    monkeypatch.chdir(tmp_path)
    assert __main__.main([]) == 0
    (note,) = capsys.readouterr().err.splitlines()
    assert why in note
    assert why in words((tmp_path / "results/lesson.html").read_text())


@pytest.fixture(scope="module")
def published() -> list[gallery.Card]:
    """The cards of the repository: each reads a dataset, so that they are made once."""
    return gallery.cards(loading.PUBLISHED, loading.PUBLISHED / "results")


def test_what_an_experiment_offers_is_there(
    experiment_file: Path, published: list[gallery.Card]
) -> None:
    """Each number, claim and payload, in the results as published, at a place that there is."""
    (card,) = (card for card in published if card.name == experiment_file.stem)
    found = build.offered([card])
    evidence = Evidence(found)
    assert found.notes == ()
    for place in found.places:
        if place.kind == "figure":
            assert offers.figure_at(found, place.name).problem == ""
        else:
            row = evidence.labels(place.name) if place.kind == "number" else []
            cells = [evidence.number(place.name, along=label) for label in row]
            for said in cells or [getattr(evidence, place.kind)(place.name)]:
                assert "unknown" not in said


def test_every_place_can_be_offered(project: Path, tmp_path: Path) -> None:
    """By the experiment that the tests in a browser draw."""
    (card,) = gallery.cards(project / "tests" / "page", tmp_path)
    found = build.offered([card])
    assert found.notes == ()
    assert found.places.keys() == {*build.places()}


# ---- experiments come and go


def with_experiments(tmp_path: Path, project: Path, names: dict[str, str]) -> list[gallery.Card]:
    """The cards of a project of the published experiments and results, under the new names."""
    for folder in ("experiments", "results"):
        (tmp_path / folder).mkdir()
    for name, new in names.items():
        (tmp_path / "experiments" / f"{new}.py").write_text(
            (project / "experiments" / f"{name}.py").read_text()
        )
        (tmp_path / "results" / new).symlink_to(project / "results" / name)
    return gallery.cards(tmp_path, tmp_path / "results")


def test_experiments_under_other_names_change_nothing_else_in_the_lesson(
    published: list[gallery.Card], project: Path, tmp_path: Path
) -> None:
    names = {card.name: f"its_{number}_th_name" for number, card in enumerate(published)}
    page = build.lesson_page(with_experiments(tmp_path, project, names))
    for name, new in names.items():
        page = page.replace(new, name)
    assert page == build.lesson_page(published)


# Those with a LESSON; the others are in no place of it.
OFFERING = [
    file.stem
    for file in loading.discover(loading.PUBLISHED)
    if "\nLESSON = " in file.read_text(encoding="utf-8")
]

# A place that is shown only within another.
PART_OF = {
    Place("figure", "format ends"): Place("figure", "chain"),
    Place("number", "weight of zero depths"): Place("number", "zero depths"),
    Place("number", "weight of infinite depths"): Place("number", "zero depths"),
}


@pytest.mark.parametrize("name", OFFERING)
def test_a_removed_experiment_is_missed_in_its_places_only(
    name: str, published: list[gallery.Card]
) -> None:
    before = build.offered(published).places
    cards = [card for card in published if card.name != name]
    after = build.offered(cards).places
    gone = before.keys() - after.keys()
    assert gone == {p for p, o in before.items() if o.experiment == name} != set()
    text = words(build.lesson_page(cards))
    for place in gone:
        if PART_OF.get(place) in gone:
            continue
        assert f"no experiment here offers {place}" in text
    assert build.index(cards).count('<article class="card"') == len(cards)


# ---- the lesson


DATA = xr.Dataset(
    {
        "a": (("x", "name"), [[1.0, 2.0], [3.0, 4.0]]),
        "log10_a": (("x",), [2.0, -458.0]),
        "log_a": math.log(100),
    },
    {"x": [0.5, 1.5], "name": ["p", "q"]},
    {"depth": 7},
)


def evidence(**numbers: lesson.At) -> Evidence:
    """What may be said of an experiment that has run, and of one that has not."""
    run = gallery.Run("", "e", data=DATA, claims=(claim("it holds"), claim("it fails", "fails")))
    command = "python experiments/e.py"
    said = {"held": "it holds", "failing": "it", "unsaid": "never said"}
    there = {Place("number", name): Offered(at, "e", command, run) for name, at in numbers.items()}
    there |= {Place("claim", name): Offered(text, "e", command, run) for name, text in said.items()}
    waiting = Offered(lesson.at("a"), "e", command, gallery.Run("", "e"))
    return Evidence(
        Offers(there | {Place(kind, "waiting"): waiting for kind in ("number", "claim")}, ())
    )


@pytest.mark.parametrize(
    ("at", "shown"),
    [
        (lesson.at("a", x=1.5, name="q"), ">4<"),
        (lesson.at("a", x="last", name="p"), ">3<"),
        (lesson.at("a", how="max"), ">4<"),
        (lesson.at("a", how="mean", name="p"), ">2<"),
        (lesson.at("log10_a", scale="log10", x=0.5), ">100<"),
        (lesson.at("log10_a", scale="log10", x=1.5), ">1.000 × 10<sup>−458</sup><"),
        (lesson.at("log_a", scale="ln"), ">100<"),
        (lesson.at("depth"), ">7<"),
        (lesson.at("x", how="count"), ">2<"),
    ],
)
def test_a_number_of_the_lesson_is_read_where_it_stands(at: lesson.At, shown: str) -> None:
    found = evidence(here=at)
    assert shown in found.number("here")
    assert [use.variable for use in found.uses] == [at.variable]


@pytest.mark.parametrize(
    "at",
    [lesson.at("a", x=0.7, name="q"), lesson.at("b"), lesson.at("a"), lesson.at("a", along="y")],
)
def test_a_number_that_is_not_there_is_not_made_up(at: lesson.At) -> None:
    found = evidence(here=at)
    assert found.number("here") == (
        '<span class="verdict inline unknown">'
        "(the dataset of e lacks the number &#39;here&#39;)</span>"
    )
    assert "no experiment here offers the number" in found.number("there")
    assert "not computed yet: python experiments/e.py" in found.number("waiting")
    assert not found.uses


def test_a_row_has_a_number_for_each_text_of_its_axis() -> None:
    found = evidence(row=lesson.at("a", along="name", x=0.5))
    assert found.labels("row") == ["p", "q"]
    assert [">1<" in found.number("row", along="p"), ">2<" in found.number("row", along="q")]
    assert [use.where for use in found.uses] == ["x = 0.5, name = p", "x = 0.5, name = q"]
    assert found.labels("nowhere") == []


@pytest.mark.parametrize("wrong", [{"how": "sum"}, {"scale": "log2"}])
def test_a_number_that_cannot_be_made_is_refused_at_once(wrong: dict[str, str]) -> None:
    with pytest.raises(BadInput, match="is not known"):
        lesson.at("a", **wrong)


def test_a_failing_claim_is_told_where_the_sentence_stands() -> None:
    assert "✓" in evidence().claim("held")
    assert "This failed here: “it fails”: measured 1, expected 1." in evidence().claim("failing")
    assert "no claim of e says &#39;never said&#39;" in evidence().claim("unsaid")
    assert "no experiment here offers the claim" in evidence().claim("elsewhere")
    assert "not computed yet: python experiments/e.py" in evidence().claim("waiting")


def test_the_lesson_types_no_number_that_an_experiment_could_give() -> None:
    text = (build.HERE / "templates" / "lesson.html").read_text()
    formulas = (
        *(
            r"\{% call formula.*?endcall %\}",
            r"\{% set .*?endset %\}",
            r"\{% macro .*?endmacro %\}",
        ),
        *(
            r"@font-face \{.*; \}",
            r"\{\{.*?\}\}",
            r"\{[%#].*?[%#]\}",
            r"<cite>.*?</cite>",
            r"<[^>]*>",
        ),
    )
    for pattern in formulas:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    assert re.findall(r"\d+", text) == []


def test_a_figure_is_read_by_name_from_a_dataset() -> None:
    shape = {"sigma_w": 2, "back": 3, "kind": 2, "activation": 1}  # axes in any order
    values = xr.DataArray(np.arange(12.0).reshape(*shape.values()), dims=tuple(shape))
    names = dict.fromkeys(("median", "low", "high"), "log10")
    data = xr.Dataset(
        {
            "log10": values,
            "predicted": values.isel(kind=0),
            "chi_1": values.isel(kind=0, back=0),
        },
        coords={"activation": ["tanh"], "kind": ["plain", "residual"], "sigma_w": [1.0, 2.0]},
        # A list of the configuration is saved as a text, beside the axis that it names.
        attrs={"width": np.int64(4), "num_draws": 5, "activation": "tanh, relu"},
    ).assign_coords(back=[0, 1, 2])
    read = lesson.read("network", activations="activation", kinds="kind", **names)
    found = json.loads(json.dumps(read(data)))

    assert set(found) == set(lesson.FIGURES["network"].__annotations__)
    assert found["activations"] == ["tanh"]
    assert (found["kinds"], found["back"], found["width"]) == (["plain", "residual"], [0, 1, 2], 4)
    wanted = values.transpose("activation", "kind", "sigma_w", "back")
    np.testing.assert_array_equal(lesson.unpacked(found["median"]), wanted)


def test_a_variable_says_by_its_name_that_it_is_a_logarithm() -> None:
    assert [lesson.at(name).scale for name in ("log10_a", "log_a", "logit")] == ["log10", "ln", "1"]
