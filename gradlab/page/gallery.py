"""What is on disk for each experiment: found, finished, failed or missing, and never left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import dataset, fileset, loading
from gradlab.experiment.headline import recorded
from gradlab.experiment.lesson import Offer
from gradlab.page import shelves
from gradlab.page.worth import Worth, worth_of

if TYPE_CHECKING:
    import xarray as xr

LINKS = ("data.nc", "figure.pdf", "claims.json", "run.json")
FILES = ("data.nc", "figure.svg", "claims.json", "run.json")


@dataclass(frozen=True)
class Run:
    """One folder of results.

    Attributes:
        name: the overrides that it was made with; empty for the experiment as written.
        folder: where it is, from the folder of all results.
        problems: what is missing or damaged, a sentence each; empty for a finished run.
        claims: as saved, with their verdicts.
        headline: its headline numbers in words, each with its name; none of a sweep.
        record: its provenance, as saved.
        figure: the vector figure, as saved; empty where there is none.
        caption: what the figure shows, in a sentence or two; empty where the run wrote none.
        links: its files that can be linked to.
        data: its dataset, None where it cannot be read.
    """

    name: str
    folder: str
    problems: tuple[str, ...] = ()
    claims: tuple[dict[str, Any], ...] = ()
    headline: tuple[tuple[str, str], ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    figure: str = ""
    caption: str = ""
    links: tuple[str, ...] = ()
    data: xr.Dataset | None = None

    @property
    def num_held(self) -> int:
        """How many of its claims hold."""
        return sum(claim["verdict"] == "holds" for claim in self.claims)

    @property
    def num_failed(self) -> int:
        """How many of its claims do not."""
        return len(self.claims) - self.num_held

    @property
    def command(self) -> str:
        """How it was made; empty where that is not known."""
        return str(self.record.get("command", ""))

    @property
    def failures(self) -> Sequence[Mapping[str, Any]]:
        """The points of a sweep that have no result."""
        return list(self.record.get("failures", ()))

    @property
    def axes(self) -> Mapping[str, Sequence[Any]]:
        """The swept keys with their values; empty for a single run."""
        return dict(self.record.get("sweep", {}))

    @property
    def state(self) -> str:
        """In one word: missing, damaged, failed or holds."""
        if self.problems:
            return "damaged" if self.links or self.record else "missing"
        return "failed" if self.num_failed or self.failures else "holds"


@dataclass(frozen=True)
class Card:
    """One experiment: its question, its own run, and the runs with overrides and sweeps.

    `offer` is what it has for the lesson; `note` says in a sentence why that cannot be read.
    `worth` is what its claims would notice, and how often chance breaks one. `files` are its
    question and its values, each with its address.
    """

    name: str
    question: str
    source: str
    command: str
    run: Run
    others: tuple[Run, ...]
    offer: Offer = field(default_factory=Offer)
    note: str = ""
    worth: Worth = field(default_factory=Worth)
    group: str = shelves.OWN
    files: tuple[tuple[str, str], ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All of them."""
        return (self.run, *self.others)


def cards(project: Path, results: Path) -> list[Card]:
    """A card for every experiment of the project and every folder of results, by name."""
    files, folders = experiments(project, results), _folders(results)
    return [_card(name, files.get(name), results) for name in sorted({*files, *folders})]


def waiting(results: Path, shown: Sequence[Card]) -> list[Card]:
    """Cards of the published experiments that have no results here: how to get what they offer."""
    names = {card.name for card in shown}
    return [
        replace(_card(file.stem, file, results), command=f"gradlab run {file.stem}")
        for file in loading.discover(loading.PUBLISHED)
        if file.stem not in names
    ]


def experiments(project: Path, results: Path) -> dict[str, Path]:
    """The experiment files by name: the project's, and published ones that have results here."""
    own = {path.stem: path for path in loading.discover(project)}
    published = {path.stem: path for path in loading.discover(loading.PUBLISHED)}
    return {name: published[name] for name in _folders(results) & published.keys()} | own


def _folders(results: Path) -> set[str]:
    return {path.name for path in results.glob("*/") if any(_runs_below(path))}


def _runs_below(folder: Path) -> Iterator[Path]:
    """The folders of runs in and below the folder of one experiment."""
    candidates = (folder, *sorted(folder.glob("*/"))) if folder.is_dir() else ()
    yield from (path for path in candidates if any((path / name).is_file() for name in FILES))


def _card(name: str, file: Path | None, results: Path) -> Card:
    question, source = loading.described(file) if file else (name, "")
    offer, note = offer_of(file) if file else (Offer(), "")
    others = [path for path in _runs_below(results / name) if path != results / name]
    return Card(
        name,
        question,
        source,
        " ".join(loading.command(file.parent.parent if file else Path(), name)),
        _run("", results / name, results, () if file else ("its experiment file is gone",)),
        tuple(_run(path.name, path, results, ()) for path in others),
        offer,
        note,
        worth_of(results, name),
        shelves.group_of(file) if file else shelves.OWN,
        shelves.addresses(file, results) if file else (),
    )


def offer_of(file: Path) -> tuple[Offer, str]:
    """What an experiment file offers, and a sentence where that cannot be known.

    Only a file that defines `LESSON` is executed.
    """
    if shelves.assigned(file, "LESSON") is None:
        return Offer(), ""
    try:
        offer = loading.load(file).module.LESSON
    except (Exception, SystemExit) as error:  # the file is a user's: it may do anything
        why = f"{type(error).__name__}: {error}"
        return Offer(), f"what '{file.stem}' offers to the lesson cannot be read: {why}"
    if not isinstance(offer, Offer):
        given = type(offer).__name__
        return Offer(), f"LESSON of '{file.stem}' is of type {given}; allowed: gl.lesson.Offer(...)"
    return offer, ""


def _run(name: str, folder: Path, results: Path, known: tuple[str, ...]) -> Run:
    problems = list(known)
    if not any((folder / file).is_file() for file in FILES):
        return Run(name, folder.name, ("it has not been run yet", *known))
    claims, headline = _judged(_json(folder / "claims.json", problems), problems)
    record = _json(folder / "run.json", problems)
    record = _record(record, problems)
    figure, data = _text(folder / "figure.svg", problems), _data(folder / "data.nc", problems)
    strangers = [] if problems else _strangers(folder, problems)
    if strangers:
        problems.append(
            f"{', '.join(strangers)} is of another run than the rest; run the experiment again"
        )
    return Run(
        name,
        folder.relative_to(results).as_posix(),
        claims=claims,
        headline=headline,
        record=record,
        figure=figure,
        caption=_caption(folder / "caption.md", problems),
        data=data,
        links=tuple(file for file in LINKS if (folder / file).is_file()),
        problems=tuple(problems),
    )


def _text(path: Path, problems: list[str]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            problems.append(f"{path.name} is damaged (it is empty)")
        return text
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} is damaged ({type(error).__name__})")
    return ""


def _caption(path: Path, problems: list[str]) -> str:
    return " ".join(_text(path, problems).split()) if path.is_file() else ""


def _json(path: Path, problems: list[str]) -> Any:
    text = _text(path, problems)
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return None


def _record(content: Any, problems: list[str]) -> dict[str, Any]:
    """A run's record without the entries that are not what they should be; a sentence for each."""
    if not isinstance(content, dict):
        if content is not None:
            problems.append("run.json is damaged (not an object)")
        return {}
    wrong = [name for name, fits in _RECORD.items() if name in content and not fits(content[name])]
    problems += [f"run.json is damaged ('{name}' is not what a run writes)" for name in wrong]
    return {name: entry for name, entry in content.items() if name not in wrong}


def _is_failures(entry: Any) -> bool:
    texts = ("error", "command")
    return isinstance(entry, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(text), str) for text in texts)
        for one in entry
    )


# What the page reads of a record.
_RECORD: dict[str, Callable[[Any], bool]] = {
    "command": lambda entry: isinstance(entry, str),
    "failures": _is_failures,
    "sweep": lambda entry: (
        isinstance(entry, dict) and all(isinstance(values, list) for values in entry.values())
    ),
}


def _strangers(folder: Path, problems: list[str]) -> list[str]:
    try:
        return fileset.strangers(folder)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        problems.append(f"run.json is damaged ({type(error).__name__})")
        return []


_CLAIM = {"sentence", "measured", "expected", "tolerance", "source", "relation", "verdict"}


def _judged(
    content: Any, problems: list[str]
) -> tuple[tuple[dict[str, Any], ...], tuple[tuple[str, str], ...]]:
    """The claims of a run, and its headline numbers in words."""
    if content is None:
        return (), ()
    try:
        claims, headline = fileset.read_judged(content)
        numbers = [recorded(told) for told in headline if "point" not in told]
    except (BadInput, TypeError, ValueError, KeyError) as error:
        problems.append(f"claims.json is damaged ({error})")
        return (), ()
    words = tuple((number.name, number.words()) for number in numbers)
    return tuple(_claims(claims, problems)), words


def _claims(entries: list[Any], problems: list[str]) -> Iterator[dict[str, Any]]:
    for entry in entries:
        if _is_claim(entry):
            yield entry
        else:
            problems.append("claims.json is damaged (an entry is not a claim)")
            return


def _is_claim(entry: Any) -> bool:
    """Whether an entry has all that a claim writes, each of the kind that it writes."""
    if not (
        isinstance(entry, dict)
        and set(entry) >= _CLAIM
        and isinstance(entry["tolerance"], dict)
        and isinstance(entry.get("point", {}), dict)
        and entry["verdict"] in ("holds", "fails")
        and all(isinstance(entry[name], str) for name in ("sentence", "source", "relation"))
    ):
        return False
    try:
        list(map(float, (entry["measured"], entry["expected"], *entry["tolerance"].values())))
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _data(path: Path, problems: list[str]) -> xr.Dataset | None:
    try:
        return dataset.read(path)
    except BadInput as error:
        missing = not path.exists()
        problems.append("data.nc is missing" if missing else f"data.nc is damaged: {error}")
        return None
    except Exception as error:  # a damaged file may raise anything in the libraries that read it
        problems.append(f"data.nc is damaged ({type(error).__name__})")
        return None
