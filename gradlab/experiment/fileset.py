"""The files of a run are one set: `run.json` comes last and names the digests of the others.

A kill between two files, or a file edited later, is seen by whoever reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradlab.errors import BadInput
from gradlab.experiment import files

# Counted up when a reader of before could not read what is written now: data.nc, claims.json and
# run.json, each for itself.
LAYOUT = 2
CLAIMS_LAYOUT = 2
RECORD_LAYOUT = 2

MEMBERS = ("data.nc", "claims.json", "caption.md", "figure.png", "figure.pdf", "figure.svg")


def close(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `run.json`: the record, and the digests of the files that stand beside it."""
    files.write_json(
        folder / "run.json", {**record, "layout": RECORD_LAYOUT, "files": digests(folder)}
    )


def as_judged(claims: Iterable[str], headline: Iterable[str]) -> bytes:
    """The content of claims.json: the records of claims and of headline numbers, each as JSON."""
    held = io.BytesIO()  # a sweep's lines are many
    held.write(f'{{\n"layout": {CLAIMS_LAYOUT}'.encode())
    for name, records in (("claims", claims), ("headline", headline)):
        held.write(f',\n"{name}": [\n'.encode())
        for number, record in enumerate(filter(None, records)):
            held.write(b",\n" if number else b"")
            held.write(record.encode())
        held.write(b"\n]")
    held.write(b"\n}\n")
    return held.getvalue()


def read_judged(content: Any) -> tuple[list[Any], list[Any]]:
    """The records of claims and of headline numbers in what claims.json holds.

    A bare list is of an older gradlab, which knew no headline numbers.

    Raises:
        BadInput: it is neither.
    """
    if isinstance(content, list):
        return content, []
    told = content if isinstance(content, dict) else {}
    parts = [told.get(name) for name in ("claims", "headline")]
    if told.get("layout") != CLAIMS_LAYOUT or not all(isinstance(part, list) for part in parts):
        raise BadInput(
            f"claims.json has the layout {told.get('layout')}; allowed: layout {CLAIMS_LAYOUT}; "
            "run the experiment again"
        )
    return told["claims"], told["headline"]


def digests(folder: Path) -> dict[str, str]:
    """File name to the digest of its content, for each member of the set that is there."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()[:32]
        for name in MEMBERS
        if (folder / name).is_file()
    }


def manifest(folder: Path) -> dict[str, Any]:
    """What `run.json` says; empty where there is none that can be read."""
    try:
        told = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def strangers(folder: Path) -> list[str]:
    """The members that are not of the run that `run.json` tells of; none if the set is whole."""
    told = manifest(folder)
    named = told.get("files")
    if told.get("layout") != RECORD_LAYOUT or not isinstance(named, dict):
        return ["run.json"]
    there = digests(folder)
    return [name for name in MEMBERS if there.get(name) != named.get(name)]
