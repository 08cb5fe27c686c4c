"""Every law of `gradlab/theory` stands in docs/laws.md, in a line that the tests execute."""

import ast
import doctest
import re
from pathlib import Path

import pytest

from gradlab import theory

MODULES = [
    path for path in sorted(Path(theory.__file__).parent.glob("*.py")) if path.stem != "__init__"
]
# How averages are taken, and no laws themselves.
RULES = {"gauss.smooth_rule", "gauss.split_rule"}


def public(path: Path) -> set[str]:
    """The public functions of a module, as `module.function`."""
    body = ast.parse(path.read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    return {f"{path.stem}.{name}" for name in names if not name.startswith("_")} - RULES


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parent.parent / "docs" / "laws.md").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_each_law_is_checked_on_the_page_and_explained(path: Path, page: str) -> None:
    executed = "".join(example.source for example in doctest.DocTestParser().get_examples(page))
    called = set(re.findall(r"\b[a-z_]+\.\w+", executed))
    assert public(path) <= called
    rows = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| `.*$", page, re.MULTILINE))))
    assert {name.split(".")[1] for name in public(path)} <= rows


def test_the_page_speaks_of_no_law_that_is_gone(page: str) -> None:
    known = set().union(*map(public, MODULES))
    first_cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+)", page, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", "".join(first_cells)))
    assert named <= {name.split(".")[1] for name in known}
