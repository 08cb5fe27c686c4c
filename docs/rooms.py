"""The tree of gradlab/, a line a room, for docs/architecture.md: each line is the room's own first.

`python docs/rooms.py` writes it between the two marks in that file; a test holds the file to it.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "gradlab"
PAGE = HERE / "architecture.md"
INSTALL = HERE / "install.md"
START, END = "<!-- rooms -->", "<!-- end of rooms -->"

# From the ground up: a wing imports only wings above it in this list.
WINGS = (
    *("arithmetic", "models", "measuring", "theory", "diagnosis"),
    *("experiment", "running", "sweeping", "calibration", "page"),
)

# Those that stand in no wing.
ROOMS = ("errors", "lazy", "starting")


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    text = path.read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def rows(folder: Path, indent: str) -> Iterator[str]:
    """A line for each room of a folder, those behind a door of their own indented below it."""
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("__"):
            yield f"{indent}- `{path.stem}`: {first_sentence(path)}"
        elif (path / "__init__.py").exists():
            yield f"{indent}- `{path.name}/`: {first_sentence(path / '__init__.py')}"
            yield from rows(path, indent + "  ")


def tree() -> str:
    """All rooms as a Markdown list, wing by wing."""
    parts = [f"- `{name}`: {first_sentence(PACKAGE / f'{name}.py')}" for name in ROOMS]
    for wing in WINGS:
        parts.append(f"- **`{wing}/`**: {first_sentence(PACKAGE / wing / '__init__.py')}")
        parts.extend(rows(PACKAGE / wing, "  "))
    return "\n".join(parts)


def page() -> str:
    """docs/architecture.md with the tree of today between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{tree()}\n{END}{after}"


def versions() -> str:
    """A row for each library that gradlab needs: the oldest version allowed, and the locked one."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    lock = (HERE.parent / "requirements.lock").read_text()
    rows = []
    for name, oldest in (line.partition(",")[0].split(">=") for line in wanted):
        locked = re.search(rf"^{name.replace('_', '[-_]')}==([\w.]+)", lock, re.MULTILINE)
        rows.append(f"| {name} | {oldest} | {locked[1] if locked else ''} |")
    return "\n".join(rows)


def install() -> str:
    """docs/install.md with the versions of today, which stand at its end."""
    head = "| library | oldest | locked |\n|---|---|---|\n"
    return f"{INSTALL.read_text().partition(head)[0]}{head}{versions()}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    INSTALL.write_text(install())
