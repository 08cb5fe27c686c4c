"""The tree of gradlab/, a line a room, for docs/architecture.md: each line is the room's own first.

`python docs/rooms.py` writes it between the two marks in that file; a test holds the file to it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "gradlab"
PAGE = HERE / "architecture.md"
START, END = "<!-- rooms -->", "<!-- end of rooms -->"

# From the ground up: a wing imports only wings above it in this list.
WINGS = (
    *("arithmetic", "models", "measuring", "theory", "diagnosis"),
    *("experiment", "running", "sweeping", "calibration", "page"),
)


def first_sentence(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


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
    parts = ["- `errors`: " + first_sentence(PACKAGE / "errors.py")]
    parts.append("- `lazy`: " + first_sentence(PACKAGE / "lazy.py"))
    for wing in WINGS:
        parts.append(f"- **`{wing}/`**: {first_sentence(PACKAGE / wing / '__init__.py')}")
        parts.extend(rows(PACKAGE / wing, "  "))
    return "\n".join(parts)


def page() -> str:
    """docs/architecture.md with the tree of today between its marks."""
    before, _, rest = PAGE.read_text().partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{tree()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
