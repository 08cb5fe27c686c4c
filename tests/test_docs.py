"""What the documentation says of the tree is true of the tree."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest


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


def test_every_room_says_in_its_first_line_what_it_is(rooms: ModuleType) -> None:
    lines = [line for line in rooms.tree().splitlines() if "`: " in line or "`**: " in line]

    assert len(lines) > 40
    assert [line for line in lines if not line.rstrip().endswith((".", ":"))] == []
    assert max(map(len, lines)) < 140


def test_every_file_that_a_page_names_is_there(project: Path) -> None:
    pages = [project / "README.md", project / "CONTRIBUTING.md", *(project / "docs").glob("*.md")]
    for page in pages:
        named = re.findall(
            r"\b(?:docs|tests|configs|benchmarks|gradlab)/[\w/]+\.\w+", page.read_text()
        )
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        wanted = {project / name for name in named} | {page.parent / link for link in links}
        made = {path for path in wanted if path.suffix == ".html"}  # `make figures` makes them
        assert {str(path) for path in wanted - made if not path.exists()} == set(), page
