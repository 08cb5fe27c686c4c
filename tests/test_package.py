"""What a wheel made from an sdist holds, used as somebody does who has no checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

import gradlab
from gradlab.__main__ import COMMANDS, dispatch
from gradlab.experiment import loading
from tests.test_docs import blocks

SOURCES = ("gradlab", "hydra_plugins", "experiments", "configs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff")


class Installed(NamedTuple):
    """A wheel in an environment of its own, and an empty folder to work in."""

    binaries: Path
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, in the folder."""
        program, *arguments = words
        return subprocess.run(
            [self.binaries / program, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )


def built(kind: str, source: Path, target: Path) -> Path:
    code = f"from setuptools import build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From the repository's files to an sdist, from that alone to a wheel, and it installed."""
    root = tmp_path_factory.mktemp("package")
    source, project = root / "source", Path(__file__).parent.parent
    source.mkdir()
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(project / name, source / name, ignore=ignored)
    for name in (*FILES, "CONTRIBUTING.md"):
        shutil.copy(project / name, source)
    with tarfile.open(built("sdist", source, root)) as archive:
        archive.extractall(root, filter="data")
    (unpacked,) = (path for path in root.glob("gradlab-*") if path.is_dir())
    wheel = built("wheel", unpacked, root)
    venv.create(root / "env", symlinks=True)
    packages = next((root / "env" / "lib").glob("python*/site-packages"))
    # What gradlab needs is the present environment's; no .pth file of it is followed.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others))
    quiet = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    python = root / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return python.parent


@pytest.fixture
def installed(binaries: Path, tmp_path: Path) -> Installed:
    return Installed(binaries, tmp_path)


def test_the_published_experiments_run_from_the_wheel_into_the_current_folder(
    installed: Installed, project: Path
) -> None:
    names = [path.stem for path in loading.discover(project)]
    listed = installed.run("gradlab", "list")
    done = installed.run("gradlab", "run", "format_ends", "scale=smoke", "num_w=5")
    folder = installed.folder / "results" / "format_ends" / "num_w=5,scale=smoke"
    again = installed.run(
        "python",
        "-c",
        "import gradlab as gl; print(gl.__file__); "
        "run = gl.load('format_ends', scale='smoke', num_w=5); print(run.folder); "
        "print(gl.runs().experiment.tolist())",
    )

    assert [line.split()[0] for line in listed.stdout.splitlines()] == names, listed.stderr
    assert done.returncode == 0, done.stderr
    assert (folder / "figure.png").is_file()
    assert (
        '"command": "gradlab run format_ends scale=smoke num_w=5"'
        in (folder / "run.json").read_text()
    )
    assert '"commit": null' in (folder / "run.json").read_text()
    assert again.stdout.splitlines()[1:] == [str(folder), "['format_ends']"], again.stderr
    assert str(project) not in again.stdout


def test_a_new_question_is_two_files_that_work_beside_the_package(installed: Installed) -> None:
    begun = installed.run("gradlab", "new", "my_question")
    made = sorted(path for path in installed.folder.rglob("*my_question*"))
    done = installed.run("gradlab", "run", "my_question", "scale=smoke")
    again = installed.run("gradlab", "new", "my_question")
    published = installed.run("gradlab", "run", "format_ends", "scale=smoke", "num_w=5")
    page = installed.run("gradlab", "page")

    assert published.returncode == 0, published.stderr
    assert begun.returncode == 0, begun.stderr
    assert [path.parent.name for path in made] == ["configs", "experiments"]
    assert done.returncode == 0, done.stderr
    assert (installed.folder / "results" / "my_question" / "scale=smoke" / "data.nc").is_file()
    assert again.returncode == 1
    assert "is there already; allowed:" in again.stderr
    assert page.returncode == 0, page.stderr
    text = (installed.folder / "results" / "index.html").read_text()
    assert text.count('<article class="card"') == 2  # it, and what ran of the published ones
    assert "its experiment file is gone" not in text


def test_the_example_for_contributors_is_what_a_new_question_begins_as(project: Path) -> None:
    page, data = project / "CONTRIBUTING.md", project / "gradlab" / "data"

    assert blocks(page, "python")[0] == (data / "question.py.txt").read_text()
    assert blocks(page, "yaml")[0] == (data / "question.yaml").read_text()


def test_the_library_is_imported_without_what_takes_its_time(installed: Installed) -> None:
    loaded = installed.run("python", "-c", "import gradlab, sys; print(*sys.modules)").stdout
    assert not {"jax", "numpy", "hydra", "matplotlib", "xarray"} & set(loaded.split())


def test_one_version_is_told_everywhere(project: Path, installed: Installed) -> None:
    told = installed.run("gradlab", "--version").stdout.split()
    lines = (project / "CITATION.cff").read_text().splitlines()

    assert told == ["gradlab", gradlab.__version__]
    assert f"version: {gradlab.__version__}" in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "did you mean .run.*audit, completion, list, new, page, run"),
        (["run"], "no experiment is named"),
        (["run", "scalar_chian"], "scalar_chain"),
        (["new"], "allowed: one"),
        (["new", "My question"], "allowed: small letters"),
        (["list", "all"], "allowed: nothing"),
    ],
)
def test_a_wrong_word_is_answered_in_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(words) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert re.search(said, told)


def test_every_subcommand_tells_what_it_does_and_tab_continues_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, command in COMMANDS.items():
        assert dispatch([name, "--help"]) == 0
        assert command.does in capsys.readouterr().out
    for words, expected in (
        (["ru"], {"run"}),
        (["run", "scalar_c"], {"scalar_chain"}),
        (["run", "scalar_chain", "num_"], {"num_draws="}),
        (["page", "re"], set()),
    ):
        assert dispatch(["completion", *words]) == 0
        assert set(capsys.readouterr().out.split()) == expected
    assert dispatch(["completion"]) == 0
    assert "complete -o default -F _gradlab gradlab" in capsys.readouterr().out


def test_an_audit_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["audit", "nothing"]) == 2
    assert "names no function" in capsys.readouterr().err
    assert dispatch(["audit"]) == 2


def test_nothing_heavy_is_imported_before_a_subcommand_needs_it() -> None:
    body = ast.parse(Path(loading.__file__).parent.parent.joinpath("__main__.py").read_text()).body
    names = {
        alias.name for node in body if isinstance(node, ast.Import) for alias in node.names
    } | {node.module for node in body if isinstance(node, ast.ImportFrom)}

    assert names <= {*sys.stdlib_module_names, "collections.abc", "gradlab", "gradlab.errors"}
