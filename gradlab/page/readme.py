"""README's table of the experiments, made from their docstrings."""

from __future__ import annotations

from pathlib import Path

from gradlab.errors import BadInput
from gradlab.experiment import files, loading

BEGIN = "<!-- experiments: this table is made by `make page` from their docstrings -->"
END = "<!-- end of experiments -->"


def table(project: Path) -> str:
    """A row for each experiment of the project: its name, and the first line of its docstring."""
    rows = [(f"`{file.stem}`", loading.described(file)[0]) for file in loading.discover(project)]
    lines = [_row("experiment", "question"), "|---|---|", *(_row(*row) for row in rows)]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return "| " + " | ".join(escaped) + " |"


def renewed(text: str, project: Path) -> str:
    """The text of a README with the table between the two marks made anew, if it has them.

    Raises:
        BadInput: it has one mark without the other, twice, or in the wrong order.
    """
    counts = text.count(BEGIN), text.count(END)
    if counts == (0, 0):
        return text
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    if counts != (1, 1) or END in before:
        raise BadInput(
            f"README.md has '{BEGIN}' {counts[0]} times and '{END}' {counts[1]} times; "
            "allowed: each once, in this order"
        )
    return f"{before}{BEGIN}\n{table(project)}\n{END}{after}"


def renew(project: Path) -> None:
    """Put the table into the README of the project, where it is not there yet.

    Raises:
        BadInput: the README's marks are not a pair, or it cannot be written.
    """
    path = project / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    new = renewed(text, project)
    if new == text:
        return
    files.write_bytes(path, new.encode())
