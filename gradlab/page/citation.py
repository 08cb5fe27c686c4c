"""How to cite the figure of one run: a sentence and BibTeX, from what the run recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

AUTHOR = "The gradlab developers"
BIBTEX = """@misc{{gradlab:{key},
  author       = {{{{{author}}}}},
  title        = {{{title}}},
  howpublished = {{gradlab{version}, experiment \\texttt{{{name}}}}},
  note         = {{Made by \\texttt{{{command}}}; {made}}}
}}"""

# What LaTeX would take for a sign of its own.
LATEX = {sign: f"\\{sign}" for sign in "#$%&_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


def reference(name: str, question: str, record: Mapping[str, Any]) -> str:
    """The figure of experiment `name` in a line of text: its question, its maker and its making."""
    made = "; ".join(conditions(record))
    by = f", made by {record['command']}" if record.get("command") else ""
    return f"“{question}” {AUTHOR}, gradlab{version(record)}, experiment {name}{by}; {made}."


def bibtex(name: str, question: str, record: Mapping[str, Any]) -> str:
    """The same as an entry of a bibliography, whatever signs the command has."""
    return BIBTEX.format(
        key=re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-"),
        author=AUTHOR,
        title=in_latex(question),
        version=in_latex(version(record)),
        name=in_latex(name),
        command=in_latex(str(record.get("command", f"gradlab run {name}"))),
        made=in_latex("; ".join(conditions(record))),
    )


def conditions(record: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers of a run depend on beside its command, as far as it was recorded."""
    if "seed" in record:
        yield f"seed {record['seed']}"
    yield from (str(record[key]) for key in ("precision", "device") if key in record)
    if "jax" in _versions(record):
        yield f"jax {_versions(record)['jax']}"
    if "commit" in record:
        commit, *changed = str(record["commit"]).split("+")
        yield f"commit {commit[:12]}" + (" with changes" if changed else "")


def version(record: Mapping[str, Any]) -> str:
    """The version of gradlab after a space; empty where the run did not record it."""
    found = _versions(record).get("gradlab")
    return f" {found}" if found else ""


def in_latex(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(LATEX.get(sign, sign) for sign in text)


def _versions(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("versions")
    return found if isinstance(found, Mapping) else {}
