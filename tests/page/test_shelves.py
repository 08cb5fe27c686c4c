"""Groups, and the files beside the results: read without executing, linked where they exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import xarray as xr

from gradlab.experiment import dataset, fileset, loading
from gradlab.page import build, gallery, shelves, site
from tests.pages import claim, words, write_experiment


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ('GROUP = "depth"', "depth"),
        ('GROUP: str = "my  things "', "my things"),
        ('A = GROUP = "width"', "width"),
        ("GROUP = 3", shelves.OWN),
        ('GROUP = " "', shelves.OWN),
        ('GROUP = "de" + "pth"', shelves.OWN),
        ("GROUP: str", shelves.OWN),
        ('def f():\n    GROUP = "depth"', shelves.OWN),
        ("GROUP = (", shelves.OWN),
        ("", shelves.OWN),
    ],
)
def test_a_group_is_what_the_text_of_a_file_says(tmp_path: Path, text: str, group: str) -> None:
    write_experiment(tmp_path, "e", f"{text}\nraise SystemExit('executed')\n" if text else "")
    assert shelves.group_of(tmp_path / "experiments" / "e.py") == group


def test_groups_stand_as_in_the_textbook_then_by_name_then_your_own() -> None:
    given = ["zoo", shelves.OWN, "recurrence", "apes", "the textbook"]
    ranked = sorted(given, key=shelves.rank)
    assert ranked == ["the textbook", "recurrence", "apes", "zoo", shelves.OWN]


def test_no_published_experiment_names_a_group_of_its_own(project: Path) -> None:
    groups = {path.stem: shelves.group_of(path) for path in loading.discover(project)}
    assert {*groups.values()} <= {*shelves.GROUPS, shelves.OWN}


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A project of six experiments of two groups, one of them run, with a benchmark."""
    for i in range(6):
        group = 'GROUP = "depth"\n' if i else ""
        write_experiment(tmp_path, f"e{i}", f'"""Is {i} one?"""\n{group}')
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "e0.yaml").write_text("w: 1\n")
    for folder, title in (("benchmarks", "How fast?"), ("results/benchmarks", "How exact?")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{title[4:-1]}.md").write_text(f"text\n# {title}\n")
    run = tmp_path / "results" / "e0"
    run.mkdir()
    values = {"a": (("x", "y"), [[1.0, 2.0], [3.0, 4.0]]), "b": ("x", [5.0, 6.0]), "c": 7.0}
    dataset.write(run / "data.nc", xr.Dataset(values))
    (run / "figure.svg").write_text('<svg viewBox="0 0 9 4"><path d="M 0 0"/></svg>')
    (run / "claims.json").write_text(json.dumps([claim()]))
    fileset.close(run, {"command": "python experiments/e0.py"})
    return tmp_path


def linked(page: Path) -> dict[str, Path]:
    """The files that a page links to, by address."""
    found = re.findall(r'href="([^"#:]+)"', page.read_text())
    return {address: page.parent / unquote(address) for address in found}


def test_more_than_a_handful_of_cards_begin_closed_and_nothing_is_left_out(lab: Path) -> None:
    page = build.index(gallery.cards(lab, lab / "results"))
    assert page.count("<details data-print><summary>\n") == 6
    assert "one is one" in words(page)
    (lab / "experiments" / "e5.py").unlink()
    page = build.index(gallery.cards(lab, lab / "results"))
    assert page.count("<details data-print open><summary>\n") == 5


def test_the_contents_count_the_cards_of_each_group(lab: Path) -> None:
    text = words(build.index(gallery.cards(lab, lab / "results")))
    assert "Depth 5 experiments" in text
    assert "Your own 1 experiment" in text
    assert text.index("Depth 5") < text.index("Your own 1")


@pytest.mark.parametrize("published", [False, True])
def test_question_values_and_benchmarks_are_linked_where_they_are(
    lab: Path, published: bool
) -> None:
    if published:
        folder = lab / "site"
        site.publish(lab, lab / "results", folder)
    else:
        folder = lab / "results"
        build.pages(lab, folder)
    found = linked(folder / "index.html")
    names = {path.name for path in found.values()}
    assert {"e0.py", "e5.py", "e0.yaml", "fast.md", "exact.md"} <= names
    assert [address for address, path in found.items() if not path.is_file()] == []
    assert any(address.startswith("..") for address in found) is not published
    assert "How fast?" in (folder / "index.html").read_text()


def test_the_command_beside_the_data_writes_them_as_csv(lab: Path) -> None:
    (card, *_) = gallery.cards(lab, lab / "results")
    _, *rest = shlex.split(build.in_csv(card.run))
    subprocess.run([sys.executable, *rest], cwd=lab / "results", check=True, timeout=120)
    given = np.genfromtxt(lab / "results" / "a.csv", delimiter=",", names=True)
    assert given["a"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (given["x"].tolist(), given["y"].tolist()) == ([0, 0, 1, 1], [0, 1, 0, 1])
    assert (lab / "results" / "b.csv").is_file()
