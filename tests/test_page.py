"""The pages as text: nothing left out, everything escaped, every number traced."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import dataset, lesson, loading
from gradlab.page import __main__, build, gallery, numbers, offers, readme, vector
from gradlab.page.evidence import Evidence
from gradlab.page.offers import Offered, Offers, Place

SVG = '<svg viewBox="0 0 504 180" xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>'
EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='hacked=1'>"


def claim(
    sentence: str = "one is one", verdict: str = "holds", **more: object
) -> dict[str, object]:
    return {
        "sentence": sentence,
        "measured": 1.0,
        "expected": 1.0,
        "tolerance": {"rounding": 1e-12},
        "source": "a book",
        "relation": "=",
        "verdict": verdict,
    } | more


def write_experiment(project: Path, name: str, text: str) -> None:
    (project / "experiments").mkdir(exist_ok=True)
    (project / "experiments" / f"{name}.py").write_text(text)


def write_run(folder: Path, claims: list[dict[str, object]], record: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    dataset.write(folder / "data.nc", xr.Dataset({"a": ("x", [1.0, 2.0])}))
    (folder / "figure.svg").write_text(SVG)
    (folder / "figure.pdf").write_bytes(b"%PDF")
    (folder / "claims.json").write_text(json.dumps(claims))
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A project whose experiment `plain` has been run."""
    write_experiment(tmp_path, "plain", '"""Is one one?\n\nA book says so."""\n')
    record = {"command": "python experiments/plain.py", "config": {"w": [1.0]}, "seed": 3}
    write_run(tmp_path / "results" / "plain", [claim()], record)
    return tmp_path


def index(project: Path) -> str:
    return build.index(gallery.cards(project, project / "results"))


class Words(HTMLParser):
    """What a reader sees: the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)


def words(page: str) -> str:
    reader = Words()
    reader.feed(page)
    return re.sub(r"\s+", " ", "".join(reader.text))


def test_a_card_tells_question_source_command_claims_and_provenance(lab: Path) -> None:
    text = words(index(lab))
    for part in (
        *("Is one one?", "A book says so.", "python experiments/plain.py", "one is one"),
        *("✓ holds", "rounding: 1 × 10−12", "config: w[1.0]", "seed3"),
    ):
        assert part in text


def test_a_card_shows_the_figure_and_links_to_the_data(lab: Path) -> None:
    page = index(lab)
    assert "data:image/svg+xml," in page
    assert 'href="plain/data.nc"' in page
    assert 'href="plain/figure.pdf"' in page


def test_a_caption_stands_below_its_figure_and_in_place_of_it(lab: Path) -> None:
    before = index(lab)
    assert "<figcaption>" not in before
    assert 'alt="Figure of plain: Is one one?"' in before
    (lab / "results" / "plain" / "caption.md").write_text(f"At *w* = 1 |w|^L\nis <1>. {EVIL}\n")
    page = index(lab)
    assert f"At *w* = 1 |w|^L is <1>. {EVIL}" in words(page)
    assert 'alt="At *w* = 1 |w|^L is &lt;1&gt;.' in page
    assert "<script>window.hacked" not in page


def test_a_damaged_caption_is_told(lab: Path) -> None:
    (lab / "results" / "plain" / "caption.md").write_bytes(b"\xff\xfe")
    assert "caption.md is damaged" in words(index(lab))


def test_the_line_at_the_top_counts_what_holds_and_what_fails(lab: Path) -> None:
    write_experiment(lab, "other", '"""Is two one?"""\n')
    write_run(lab / "results" / "other", [claim(), claim("two is one", "fails")], {})
    assert "2 claims hold · 1 fail · 2 experiments" in words(index(lab))


def test_an_experiment_that_was_not_run_is_shown_as_missing(lab: Path) -> None:
    write_experiment(lab, "waiting", '"""What is next?"""\n')
    text = words(index(lab))
    assert "What is next?" in text
    assert "it has not been run yet" in text
    assert "1 not run yet" in text
    assert "python experiments/waiting.py" in text


@pytest.mark.parametrize("file", gallery.FILES)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe not what it should be"])
def test_a_damaged_run_is_shown_as_such(lab: Path, file: str, content: bytes | None) -> None:
    path = lab / "results" / "plain" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    text = words(index(lab))
    assert f"{file} is " in text
    assert "These results are not whole" in text
    assert "1 with damaged results" in text


@pytest.mark.parametrize(
    "content", ["3", "{}", "[3]", '[{"sentence": "half a claim"}]', '{"verdict": "holds"}']
)
def test_claims_that_are_not_claims_are_told(lab: Path, content: str) -> None:
    (lab / "results" / "plain" / "claims.json").write_text(content)
    assert "claims.json is damaged" in words(index(lab))


def test_an_experiment_that_is_not_python_has_a_card_all_the_same(lab: Path) -> None:
    write_experiment(lab, "broken", "def (")
    assert "broken.py cannot be read as Python" in words(index(lab))


def test_results_without_their_experiment_are_not_left_out(lab: Path) -> None:
    (lab / "experiments" / "plain.py").unlink()
    assert "its experiment file is gone" in words(index(lab))


def test_no_experiment_is_executed(lab: Path) -> None:
    write_experiment(lab, "loud", '"""May I?"""\nraise SystemExit("executed")\n')
    assert "May I?" in words(index(lab))


def test_a_sweep_shows_its_axes_and_its_failures(lab: Path) -> None:
    failure = {"error": "ValueError: no", "command": "python experiments/plain.py w=3"}
    record = {"sweep": {"w": [1, 2, 3], "phi": list("abcdefgh")}, "num_points": 24}
    write_run(
        lab / "results" / "plain" / "phi,w",
        [claim(point={"w": 2, "phi": "c"})],
        record | {"failures": [failure]},
    )
    text = words(index(lab))
    assert "w1, 2, 3" in text
    assert "a, b, … h (8 values)" in text
    assert "1 of 24 points failed" in text
    assert "ValueError: no" in text
    assert "at w = 2, phi = c" in text


def test_text_from_experiments_and_runs_is_escaped(tmp_path: Path) -> None:
    write_experiment(tmp_path, "evil", f'"""{EVIL}\n\n{EVIL}"""\n')
    evil = claim(EVIL, source=EVIL, tolerance={EVIL: 0.0}, point={EVIL: EVIL})
    failure = {"error": EVIL, "command": EVIL}
    record = {"command": EVIL, "config": {EVIL: EVIL}, "sweep": {EVIL: [EVIL]}}
    write_run(tmp_path / "results" / "evil", [evil], record | {"failures": [failure]})
    write_run(tmp_path / "results" / "evil" / "w='\"><i>", [claim()], {})
    page = index(tmp_path)
    assert words(page).count(EVIL) >= 8
    assert "<script>window.hacked" not in page
    assert "<img src=x" not in page
    assert "<i>" not in page.partition("<article")[2]


def test_text_in_the_data_of_a_figure_cannot_end_its_script() -> None:
    payload = format_ends(formats=[EVIL, "float64"])
    page = build.index([offering("e", figures={"chain": chain, "format ends": lambda _: payload})])
    assert "<script>window.hacked" not in page
    assert "\\u003cscript\\u003ewindow.hacked" in page


def test_many_large_figures_leave_the_page_below_four_megabytes() -> None:
    rng = np.random.default_rng(0)
    large = SVG.replace("M 0 0", " ".join(f"L {a:.6f} 1" for a in rng.normal(size=12_000)))
    runs = [gallery.Run("", f"e{i}", figure=large) for i in range(24)]
    page = build.index([gallery.Card(run.folder, "", "", "", run, ()) for run in runs])
    assert len(page.encode()) < 4e6
    assert "data:image/svg+xml," in page
    assert 'src="e23/figure.svg"' in page


def test_the_published_pages_are_below_four_megabytes(project: Path) -> None:
    cards = gallery.cards(project, project / "results")
    assert len(build.index(cards).encode()) < 4e6
    assert len(build.lesson_page(cards).encode()) < 4e6


def test_a_sweep_of_many_claims_shows_the_failing_ones_first(lab: Path) -> None:
    many = [claim(f"claim {i}", "fails" if i == 900 else "holds") for i in range(1000)]
    write_run(lab / "results" / "plain" / "w", many, {})
    text = words(index(lab))
    assert "claim 900" in text
    assert f"{build.MOST_CLAIMS} shown" in text
    assert "claim 899" not in text


def test_both_pages_are_written_even_where_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert __main__.main([]) == 0
    assert "There is no experiment here" in words((tmp_path / "results/index.html").read_text())
    assert "no experiment here offers" in words((tmp_path / "results/lesson.html").read_text())
    assert capsys.readouterr().out.count("MB") == 2


def test_a_folder_that_cannot_be_made_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert __main__.main([str(tmp_path / "file" / "results")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert __main__.main(["a", "b"]) == 1


# ---- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.005153775, "0.00515378"),
        (-1.5e-20, "−1.5 × 10<sup>−20</sup>"),
        (1e300, "1 × 10<sup>300</sup>"),
        (math.inf, "∞"),
        ("-inf", "−∞"),
        (math.nan, "nan"),
    ],
)
def test_a_number_is_shown_to_its_digits(value: object, shown: str) -> None:
    assert numbers.plain(value) == shown


@pytest.mark.parametrize(
    ("log10", "shown"),
    [
        (-457.57490560675103, "2.6613 × 10<sup>−458</sup>"),
        (-1e-9, "1.0000 × 10<sup>0</sup>"),
        (-math.inf, "0"),
        (math.inf, "∞"),
    ],
)
def test_a_power_of_ten_has_no_range(log10: float, shown: str) -> None:
    assert numbers.power_of_ten(log10) == shown


# ---- vector figures


def test_a_shrunk_figure_has_the_same_coordinates_to_a_hundredth() -> None:
    svg = '<svg><path id="a" d="M 1.23456 2.0 L -0.001 1e2"/><use href="#a" x="3.14159"/></svg>'
    assert (
        vector.shrunk(svg)
        == '<svg><path id="n0" d="M 1.23 2 L -0 1e2"/><use href="#n0" x="3.14"/></svg>'
    )


def test_a_shrunk_figure_says_a_style_once_for_a_run_of_marks() -> None:
    marks = '<use href="#m" x="1" style="fill: red"/> <use href="#m" x="2" style="fill: red"/>'
    small = vector.shrunk(f'<svg><path id="m" d="M 0 0"/><g>{marks}</g></svg>')
    assert small.count("fill: red") == 1
    assert small.count("<use ") == 2


def test_marks_of_different_styles_keep_their_own() -> None:
    marks = '<use href="#m" x="1" style="fill: red"/> <use href="#m" x="2" style="fill: tan"/>'
    small = vector.shrunk(f'<svg><path id="m" d="M 0 0"/><g>{marks}</g></svg>')
    assert 'x="1" style="fill: red"' in small
    assert 'x="2" style="fill: tan"' in small


def test_a_figure_as_an_address_fits_an_attribute() -> None:
    address = vector.uri('<svg title="it\'s #1 & 5 %"/>')
    assert not set('"&#') & set(address)
    assert address.endswith("<svg title='it%27s %231 %26 5 %25'/>")


# ---- what is offered


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


def test_what_an_experiment_offers_is_there(experiment_file: Path, project: Path) -> None:
    """Each number, claim and payload, in the results as published, at a place that there is."""
    results = project / "results"
    (card,) = (c for c in gallery.cards(project, results) if c.name == experiment_file.stem)
    found = build.offered([card])
    evidence = Evidence(found)
    assert found.notes == ()
    for place in found.places:
        if place.kind == "figure":
            assert offers.figure(found, place.name).problem == ""
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


def test_a_renamed_experiment_changes_its_name_in_the_lesson_and_nothing_else(
    experiment_file: Path, project: Path, tmp_path: Path
) -> None:
    names = {path.stem: path.stem for path in loading.discover(project)}
    as_published = build.lesson_page(gallery.cards(project, project / "results"))
    names[experiment_file.stem] = new = "a_new_name"
    page = build.lesson_page(with_experiments(tmp_path, project, names))
    assert page.replace(new, experiment_file.stem) == as_published


# A place that is shown only within another.
PART_OF = {
    Place("figure", "format ends"): Place("figure", "chain"),
    Place("number", "weight of zero depths"): Place("number", "zero depths"),
    Place("number", "weight of infinite depths"): Place("number", "zero depths"),
}


def test_a_removed_experiment_is_missed_in_its_places_only(
    experiment_file: Path, project: Path, tmp_path: Path
) -> None:
    before = build.offered(gallery.cards(project, project / "results")).places
    others = (path.stem for path in loading.discover(project) if path != experiment_file)
    cards = with_experiments(tmp_path, project, {name: name for name in others})
    after = build.offered(cards).places
    gone = before.keys() - after.keys()
    assert gone <= {p for p, o in before.items() if o.experiment == experiment_file.stem}
    text = words(build.lesson_page(cards))
    for place in gone:
        if PART_OF.get(place) in gone:
            continue
        assert f"no experiment here offers {place}" in text
    assert "Every experiment" in words(build.index(cards))


# ---- README's table


def test_readme_has_the_experiments_as_they_are(project: Path) -> None:
    text = (project / "README.md").read_text()
    assert readme.BEGIN in text
    assert readme.renewed(text, project) == text, "run: make page"


def test_readmes_table_is_made_of_names_and_questions(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_experiment(lab, "norm", '"""Is |x| a norm?"""\n')
    path = lab / "README.md"
    path.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.chdir(lab)
    for _ in range(2):
        assert __main__.main([]) == 0
        rows = path.read_text().splitlines()
        assert rows == [
            *("before", readme.BEGIN, "| experiment | question |", "|---|---|"),
            *(r"| `norm` | Is \|x\| a norm? |", "| `plain` | Is one one? |"),
            *(readme.END, "after"),
        ]


def test_a_readme_without_marks_is_left_as_it_is(lab: Path) -> None:
    (lab / "README.md").write_text("mine\n")
    readme.renew(lab)
    assert (lab / "README.md").read_text() == "mine\n"


@pytest.mark.parametrize(
    "text",
    [
        *(readme.BEGIN, readme.END, f"{readme.END}{readme.BEGIN}"),
        f"{readme.BEGIN}{readme.END}{readme.BEGIN}",
    ],
)
def test_marks_that_are_no_pair_are_refused(lab: Path, text: str) -> None:
    with pytest.raises(BadInput, match="allowed: each once"):
        readme.renewed(text, lab)


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
        *(r"\{\{.*?\}\}", r"\{[%#].*?[%#]\}", r"<cite>.*?</cite>", r"<[^>]*>"),
    )
    for pattern in formulas:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    assert re.findall(r"\d+", text) == []
