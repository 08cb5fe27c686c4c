"""The pages as text: nothing left out, everything escaped, every number traced."""

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from gradlab.experiment import dataset
from gradlab.page import __main__, build, gallery, interactive, lesson, numbers, vector

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
    data = chain_data()
    data["format"] = ("format", [EVIL, "float64"])
    run = gallery.Run("", "scalar_chain", data=data)
    page = build.index([gallery.Card("scalar_chain", "", "", "", run, ())])
    assert "<script>window.hacked" not in page


def test_many_large_figures_leave_the_page_below_four_megabytes() -> None:
    rng = np.random.default_rng(0)
    large = SVG.replace("M 0 0", " ".join(f"L {a:.6f} 1" for a in rng.normal(size=12_000)))
    runs = [gallery.Run("", f"e{i}", figure=large) for i in range(24)]
    page = build.index([gallery.Card(run.folder, "", "", "", run, ()) for run in runs])
    assert len(page.encode()) < 4e6
    assert "data:image/svg+xml," in page
    assert 'src="e23/figure.svg"' in page


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
    assert "not computed yet" in words((tmp_path / "results/lesson.html").read_text())
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


# ---- what interactive figures are given


def chain_data() -> xr.Dataset:
    w, layer = np.array([0.5, 1.0, 2.0]), np.arange(1, 2001)
    log10 = np.log10(w)[:, None] * layer
    never = np.full((2, 3), np.inf)
    zero, infinite = never.copy(), never.copy()
    zero[:, 0], infinite[:, 2] = (25, 1075), (16, 1024)
    axes = ("format", "w_fine")
    return xr.Dataset(
        {
            "log10_fine": (("w_fine", "layer"), log10),
            "first_zero_fine": (axes, zero),
            "first_infinite_fine": (axes, infinite),
            "first_wrong_fine": (axes, never),
        },
        {"w_fine": w, "layer": layer, "format": ["float16", "float64"]},
    )


def test_arrays_travel_bit_for_bit() -> None:
    data = chain_data()
    payload = json.loads(json.dumps(interactive.chain(data)))
    np.testing.assert_array_equal(interactive.unpacked(payload["log10"]), data.log10_fine)
    np.testing.assert_array_equal(interactive.unpacked(payload["zero"]), data.first_zero_fine)


def test_arrays_to_so_many_decimals_are_rounded_once() -> None:
    packed = interactive.decimals([0.1234, -0.1236, math.inf, -math.inf, math.nan], 3)
    edge = 2**31 - 1
    assert interactive.unpacked(packed).tolist() == [123, -124, edge, -edge, -edge - 1]


def test_the_depths_that_can_be_shown_end_with_the_deepest() -> None:
    assert interactive.chain(chain_data())["views"] == [100, 1000, 2000]


def test_a_format_ends_where_it_was_seen_to() -> None:
    half, double = interactive.edges(chain_data())
    # The line is straight, so that interpolation between recorded depths is exact to rounding.
    assert half["floor"] == pytest.approx(25 * math.log10(0.5), rel=1e-12)
    assert double["ceiling"] == pytest.approx(1024 * math.log10(2), rel=1e-12)


def test_a_dataset_without_the_arrays_is_told_and_not_drawn() -> None:
    found = interactive.figures({"scalar_chain": xr.Dataset(), "wall": None})
    assert "lacks what this figure needs" in found["chain"].problem
    assert found["clipping"].problem == "wall has no dataset yet"


# ---- the lesson


def evidence() -> lesson.Evidence:
    data = xr.Dataset(
        {"a": (("x", "name"), [[1.0, 2.0], [3.0, 4.0]])},
        {"x": [0.5, 1.5], "name": ["p", "q"]},
        {"depth": 7},
    )
    claims = (claim("it holds"), claim("it fails", "fails"))
    return lesson.Evidence({"e": gallery.Run("", "e", data=data, claims=claims)})


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ({"x": 1.5, "name": "q"}, ">4<"),
        ({"x": "last", "name": "p"}, ">3<"),
        ({"how": "max"}, ">4<"),
        ({"name": "p", "how": "mean"}, ">2<"),
    ],
)
def test_a_number_of_the_lesson_is_read_by_its_place(where: dict[str, Any], shown: str) -> None:
    found = evidence()
    assert shown in found.number("e", "a", **where)
    assert [use.variable for use in found.uses] == ["a"]


@pytest.mark.parametrize(
    ("experiment", "variable", "where"),
    [("e", "a", {"x": 0.7, "name": "q"}), ("e", "b", {}), ("other", "a", {}), ("e", "a", {})],
)
def test_a_number_that_is_not_there_is_not_made_up(
    experiment: str, variable: str, where: dict[str, Any]
) -> None:
    found = evidence()
    assert "not computed yet" in found.number(experiment, variable, **where)
    assert not found.uses


def test_an_attribute_of_a_dataset_is_a_number_too() -> None:
    assert ">7<" in evidence().number("e", "depth", "count")


def test_a_failing_claim_is_told_where_the_sentence_stands() -> None:
    assert "✓" in evidence().claim("e", "it holds")
    told = evidence().claim("e", "it")
    assert "This failed here: “it fails”: measured 1, expected 1." in told
    assert "not computed yet" in evidence().claim("e", "never said")


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


def calls(template: str, name: str) -> Iterator[str]:
    yield from re.findall(rf'{name}\("(\w+)"', template)


def test_the_lesson_speaks_only_of_experiments_that_exist(project: Path) -> None:
    text = (build.HERE / "templates" / "lesson.html").read_text()
    there = {path.stem for path in (project / "experiments").glob("*.py")}
    assert {*calls(text, "number"), *calls(text, "claim")} <= there
