"""What the documentation says of the tree is true of the tree."""

import ast
import doctest
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest

import gradlab
from gradlab.__main__ import dispatch
from gradlab.experiment import loading
from gradlab.running import composition
from tests.toys import shared_configs


@pytest.fixture
def rooms(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("rooms", project / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_the_rooms_is_that_of_today(rooms: ModuleType) -> None:
    assert rooms.PAGE.read_text() == rooms.page(), "python docs/rooms.py writes it anew"
    assert rooms.INSTALL.read_text() == rooms.install(), "python docs/rooms.py writes it anew"


def test_every_room_says_in_its_first_line_what_it_is(rooms: ModuleType) -> None:
    lines = [line for line in rooms.tree().splitlines() if "`: " in line or "`**: " in line]

    assert len(lines) > 40
    assert [line for line in lines if not line.rstrip().endswith((".", ":"))] == []
    assert max(map(len, lines)) < 140


def test_every_file_that_a_page_names_is_there(project: Path) -> None:
    pages = [project / "README.md", project / "CONTRIBUTING.md", *(project / "docs").rglob("*.md")]
    for page in pages:
        named = re.findall(
            r"(?<![\w/])(?:docs|tests|configs|benchmarks|gradlab)/[\w/]+\.\w+", page.read_text()
        )
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        wanted = {project / name for name in named} | {page.parent / link for link in links}
        # `make figures` makes the pages, and whoever follows CONTRIBUTING makes its example.
        made = {
            path
            for path in wanted
            if path.suffix == ".html" or re.search("growth|my_question", str(path))
        }
        assert {str(path) for path in wanted - made if not path.exists()} == set(), page


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language, empty for none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for named, text in fenced if named == language]


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page that run an experiment, without their comments."""
    lines = re.findall(r"^ +\.venv/bin/python (experiments/.*)$", page.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_what_readme_computes_is_what_it_says(project: Path, tmp_path: Path) -> None:
    first, sick, clip, notebook, from_python, second = blocks(project / "README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", first], capture_output=True, text=True, check=True, cwd=project
    )

    assert round(float(done.stdout), 3) == 0.005
    assert "0.005" in first
    assert round(1.1**50) == 117
    engineer = subprocess.run(
        [sys.executable, "-c", f"{sick}\n{clip}\n{second}"],
        check=True,
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert engineer.stdout.startswith("1 finding in 31 layers")
    assert 'remedy, measured: gl.scale("layers.*.weight", ' in engineer.stdout
    elsewhere = tmp_path / "of_a_user"
    elsewhere.mkdir()
    shutil.copytree(project / "experiments", elsewhere / "experiments")
    shutil.copytree(project / "configs", elsewhere / "configs")
    subprocess.run([sys.executable, "-c", f"{notebook}\n{from_python}"], check=True, cwd=elsewhere)
    assert len(list((elsewhere / "results").glob("*/*/run.json"))) == 3


def test_the_model_on_the_page_of_the_audit_is_found_sick_from_the_shell(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = project / "docs" / "diagnose.md"
    (model,) = blocks(page, "python")
    (tmp_path / "sick.py").write_text(model)
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"^    (gradlab audit .*)$", page.read_text(), re.MULTILINE):
        words = shlex.split(line, comments=True)[1:]
        # Beside what was saved nothing is new, and only that is a failure.
        assert dispatch(words) == (0 if "--compare" in words else 1)
        assert "gain" in capsys.readouterr().out


def one_point(word: str) -> str:
    """An override of a sweep, cut to the first of its points."""
    first = re.sub(r"^(\w+)=(?:range|linspace|geomspace|logspace)\(([\d.]+),.*", r"\1=\2", word)
    return re.sub(r"^(\w+)=([^\[(]*?),.*", r"\1=\2", first)


def installed_commands(page: Path) -> list[list[str]]:
    """The command lines of a page that run an experiment by `gradlab run`."""
    lines = re.findall(r"^ +gradlab run (.*)$", page.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_run_that_a_how_to_page_prints_composes(project: Path) -> None:
    """In one process; Hydra's grammar, groups and keys are asked, and nothing is computed."""
    pages = [project / "README.md", *sorted((project / "docs").glob("*.md"))]
    given = [words for page in pages for words in installed_commands(page)]
    assert len(given) > 10
    for name, *words in given:
        if name == "my_question" or "--help" in words:
            continue
        experiment = loading.load(loading.find(name, project))
        lines = [one_point(word) for word in words if word != "--multirun"]
        composition.composed(experiment, lines)


def test_the_documentation_builds_strictly(project: Path, tmp_path: Path) -> None:
    """No broken link, no name in the reference that is gone."""
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "measuring.html").read_text().count("doc-function") > 30


def public(module: ModuleType) -> set[str]:
    """The functions that a room offers."""
    body = ast.parse(Path(str(module.__file__)).read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return {name for name in names if not name.startswith("_")}


Use = tuple[str, str]


def uses(source: str) -> Iterator[Use]:
    """Each name of a program with what it is taken from, as it is typed; "" for a name alone."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Attribute(attr=owner) | ast.Name(id=owner), attr=name):
                yield owner, name
            case ast.Name(id=name):
                yield "", name


def examples(page: Path) -> list[str]:
    """The examples of a page that the tests execute."""
    return [one.source for one in doctest.DocTestParser().get_examples(page.read_text())]


def executed(project: Path) -> set[Use]:
    """What all lines that the tests execute use: those of the documentation, and of README."""
    pages = [examples(page) for page in (project / "docs").glob("*.md")]
    sources = [source for page in pages for source in page]
    return {
        use for one in (*sources, *blocks(project / "README.md", "python")) for use in uses(one)
    }


def referred(project: Path) -> list[ModuleType]:
    """The rooms of the reference."""
    pages = sorted((project / "docs" / "reference").glob("*.md"))
    named = [re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE) for page in pages]
    return [importlib.import_module(name) for page in named for name in page]


def test_every_function_of_the_reference_stands_in_an_example_that_is_executed(
    project: Path,
) -> None:
    used, lacking = executed(project), {}
    offered = set(dir(gradlab))
    whole = {str(getattr(getattr(gradlab, name), "__name__", "")) for name in offered}
    for room in referred(project):
        short, is_theory = room.__name__.rpartition(".")[2], ".theory." in room.__name__
        # Of a room that is offered as a whole each function, of the others what `gl` has by name.
        names = public(room) if is_theory or room.__name__ in whole else public(room) & offered
        # The page of the laws imports them by themselves.
        owners = (short, "gl", *([""] if is_theory else []))
        shown = {name for name in names if any((owner, name) in used for owner in owners)}
        if names - shown:
            lacking[short] = names - shown
    assert lacking == {}


def test_all_that_gl_offers_stands_in_the_reference(project: Path) -> None:
    rooms = referred(project)
    wings = {"experiment", "theory"}  # whose rooms stand there
    rest = {name for name in dir(gradlab) if getattr(gradlab, name) not in rooms}
    assert {
        name for name in rest - wings if not any(hasattr(room, name) for room in rooms)
    } == set()


def test_the_library_page_has_an_example_of_each_room(project: Path) -> None:
    page = project / "docs" / "library.md"
    called = {use for source in examples(page) for use in uses(source)}
    rooms = ("chain", "ensembles", "jacobians", "chain_rule", "spectra", "certificate", "scaled")
    for room in (*rooms, "clipping", "monitor", "training", "claim", "grid"):
        shown = {name for other, name in called if other == room}
        assert shown & public(getattr(gradlab, room)), room


@pytest.mark.parametrize("name", ["README.md", "docs/hydra.md"])
def test_every_command_that_a_page_prints_composes(project: Path, name: str) -> None:
    given = commands(project / name)
    assert given
    for words in given:
        shown = {"--help", "--cfg", "--info", "--hydra-help"} & set(words)
        alone = [one_point(word) for word in words if word not in ("--multirun", "-m")]
        done = subprocess.run(
            [sys.executable, *alone, *([] if shown else ["--cfg", "job"])],
            cwd=project,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)


def test_the_tree_in_readme_has_every_folder(project: Path) -> None:
    (tree,) = blocks(project / "README.md", "")
    named = set(re.findall(r"^ *(\w+)/", tree, re.MULTILINE))
    wings = {path.parent.name for path in (project / "gradlab").glob("*/__init__.py")}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=project, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {line.partition("/")[0] for line in listed if "/" in line and not line.startswith(".")}

    assert named == top | wings


@pytest.fixture
def example(project: Path, tmp_path: Path) -> Path:
    """A project whose only experiment is the one in CONTRIBUTING.md, as it stands there."""
    page = project / "CONTRIBUTING.md"
    shared_configs(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "growth.py").write_text(blocks(page, "python")[0])
    (tmp_path / "configs" / "growth.yaml").write_text(blocks(page, "yaml")[0])
    return tmp_path / "experiments" / "growth.py"


def test_the_example_for_contributors_passes_lint_and_types(project: Path, example: Path) -> None:
    for check in (["ruff", "check"], ["ruff", "format", "--check"]):
        text = example.read_text()
        done = subprocess.run(
            [sys.executable, "-m", *check, "--stdin-filename", "experiments/growth.py", "-"],
            cwd=project,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
    types = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(example)]
    done = subprocess.run(types, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_example_for_contributors_holds_and_its_fault_is_noticed(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(example), "scale=smoke"], capture_output=True, text=True, check=False
    )
    exp = loading.load(example)
    cfg = exp.module.Config(depth=200, width=16, sigma_w=(0.8, 1.4), num_draws=20, gain=1.0)
    (planted,) = exp.faults.values()
    with planted(exp), jax.numpy_rank_promotion("allow"):
        wrong = loading.judge(exp, loading.evaluate(exp, cfg, 0))

    assert done.returncode == 0, done.stderr
    assert "1 of 1 claims hold" in done.stdout
    assert not any(claim.holds for claim in wrong)
