"""The pages as text: nothing left out, everything escaped; and README's table."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from gradlab.errors import BadInput
from gradlab.experiment import dataset, fileset
from gradlab.page import __main__, build, citation, gallery, numbers, readme, site, vector
from tests.pages import EVIL, claim, words, write_experiment

SVG = '<svg viewBox="0 0 504 180" xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>'


def write_run(folder: Path, claims: list[dict[str, object]], record: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    dataset.write(folder / "data.nc", xr.Dataset({"a": ("x", [1.0, 2.0])}))
    (folder / "figure.svg").write_text(SVG)
    (folder / "figure.pdf").write_bytes(b"%PDF")
    (folder / "claims.json").write_text(json.dumps(claims))
    fileset.close(folder, record)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A project whose experiment `plain` has been run."""
    write_experiment(tmp_path, "plain", '"""Is one one?\n\nA book says so."""\n')
    record = {"command": "python experiments/plain.py", "config": {"w": [1.0]}, "seed": 3}
    write_run(tmp_path / "results" / "plain", [claim()], record)
    return tmp_path


def index(project: Path) -> str:
    return build.index(gallery.cards(project, project / "results"))


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


def test_a_card_says_how_to_cite_its_figure_by_what_made_it(lab: Path) -> None:
    page = words(index(lab))
    assert "“Is one one?” The gradlab developers, gradlab, experiment plain, made by" in page
    assert "@misc{gradlab:plain," in page


RECORD = {
    "command": "python experiments/a_b.py w=[50%,'#1'] sigma_w=1~2^3",
    "seed": 0,
    "precision": "float64",
    "device": "cpu",
    "versions": {"gradlab": "0.1.0", "jax": "0.10.2"},
    "commit": "b66c58d895cc528120a1f642db93845e5abb70d5+changes",
}


def test_a_citation_has_what_the_numbers_depend_on() -> None:
    assert citation.reference("a_b", "Why?", RECORD) == (
        "“Why?” The gradlab developers, gradlab 0.1.0, experiment a_b, made by "
        "python experiments/a_b.py w=[50%,'#1'] sigma_w=1~2^3; "
        "seed 0; float64; cpu; jax 0.10.2; commit b66c58d895cc with changes."
    )


def test_bibtex_escapes_what_latex_would_take_for_a_sign_of_its_own() -> None:
    entry = citation.bibtex("a_b", "100 % of {x_1}?", RECORD)
    assert entry.startswith("@misc{gradlab:a-b,")
    assert r"title        = {100 \% of \{x\_1\}?}" in entry
    assert r"w=[50\%,'\#1'] sigma\_w=1\textasciitilde{}2\textasciicircum{}3" in entry
    plain = re.sub(r"\\(.)", "", entry)
    assert plain.count("{") == plain.count("}")
    assert not set("#$%&_~^") & set(plain)


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


def test_an_experiment_that_offers_nothing_is_not_executed(lab: Path) -> None:
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
    lesson = words((tmp_path / "results/lesson.html").read_text())
    assert "format_ends has no dataset yet. To compute it: gradlab run format_ends" in lesson
    assert "no experiment here offers" not in lesson
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
    assert numbers.significant(value) == shown


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


def test_a_site_holds_what_its_pages_link_to(lab: Path) -> None:
    main = site.publish(lab, lab / "results", lab / "site")[0]
    linked = re.findall(r'href="([^"#:]+)"', (lab / "site" / "index.html").read_text())

    assert [path.name for path in main] == ["index.html", "lesson.html"]
    assert [name for name in linked if not (lab / "site" / name).is_file()] == []
    assert (lab / "site" / "plain" / "run.json").is_file()


ODD: tuple[object, ...] = (None, 3, "x", [], {}, [1], {"a": None}, 1e400, "\ud800"[:0], True)


@pytest.mark.parametrize(
    "key", ["measured", "expected", "tolerance", "verdict", "relation", "point"]
)
def test_a_malformed_entry_of_a_claim_ends_no_page(lab: Path, key: str) -> None:
    file = lab / "results" / "plain" / "claims.json"
    for odd in ODD:
        file.write_text(json.dumps([claim() | {key: odd}]))
        (card,) = gallery.cards(lab, lab / "results")
        page = build.index([card])
        assert card.run.problems  # whatever is in it: it is of another run than the rest
        assert "These results are not whole" in words(page)
        build.lesson_page([card])


@pytest.mark.parametrize("key", ["command", "failures", "sweep", "config", "files", "num_points"])
def test_a_malformed_entry_of_a_record_ends_no_page(lab: Path, key: str) -> None:
    file = lab / "results" / "plain" / "run.json"
    told = json.loads(file.read_text())
    for odd in ODD:
        file.write_text(json.dumps(told | {key: odd}))
        page = build.index(gallery.cards(lab, lab / "results"))
        assert '<article class="card" id="plain">' in page


@pytest.mark.parametrize("name", ["claims.json", "run.json", "figure.svg", "data.nc", "caption.md"])
@pytest.mark.parametrize("bytes_", [b"", b"\xff\xfe", b"[" * 100_000, b"NaN", b"null", b"{}"])
def test_a_file_of_odd_bytes_ends_no_page(lab: Path, name: str, bytes_: bytes) -> None:
    (lab / "results" / "plain" / name).write_bytes(bytes_)
    assert "plain" in index(lab)


@pytest.mark.parametrize("study", ["seeds", "power"])
def test_a_malformed_record_of_a_study_is_told_on_the_card(lab: Path, study: str) -> None:
    for odd in ODD:
        text = json.dumps({"experiments": {"plain": odd}})
        (lab / "results" / f"{study}.json").write_text(text)
        assert "plain" in index(lab)
