"""A new question: the two files of an experiment that works, to be changed into one's own."""

from __future__ import annotations

import re
from pathlib import Path

from gradlab.errors import BadInput
from gradlab.experiment import files

# The example of CONTRIBUTING.md, word for word.
_DATA = Path(__file__).parent.parent / "data"
_EXAMPLE = "growth"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


def begin(name: str, project: Path) -> tuple[Path, Path]:
    """The two files of a new experiment of that name, written into a project.

    Raises:
        BadInput: the name cannot be one, or a file of it is there.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(
            f"the name '{name}' is given; allowed: small letters, digits and _, a letter first, "
            "such as my_question"
        )
    written = project / "experiments" / f"{name}.py", project / "configs" / f"{name}.yaml"
    for path in written:
        if path.exists():
            raise BadInput(f"'{path}' is there already; allowed: a name that is not taken")
    for path, source in zip(written, ("question.py.txt", "question.yaml"), strict=True):
        text = (_DATA / source).read_text(encoding="utf-8").replace(f"/{_EXAMPLE}:", f"/{name}:")
        files.folder_for(path.parent)
        files.write_bytes(path, text.encode())
    return written
