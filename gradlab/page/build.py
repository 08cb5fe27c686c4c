"""The two pages, from what is on disk to two files beside it."""

from __future__ import annotations

import base64
import functools
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradlab.experiment import files, lesson
from gradlab.page import citation, gallery, numbers, offers, panels, shelves, still, vector
from gradlab.page.evidence import Evidence
from gradlab.page.gallery import Card, Run
from gradlab.page.offers import Offers, Place

HERE = Path(__file__).parent
SCRIPTS = (
    "numbers",
    "plot",
    "figure",
    "signal",
    "chain",
    "network",
    "clipping",
    "branch",
    "moved",
    "gallery",
    "readout",
    "begin",
)
FOLDER = jinja2.FileSystemLoader(HERE / "templates")

# Characters of vector figures that a page may hold; the others it shows from beside it, so that a
# page with any number of experiments and sweeps stays below 4 MB.
BUDGET = 2_000_000
MOST_CLAIMS = 200
MOST_OPEN = 5  # of more cards than these each begins closed

# One file for each variable, by the libraries that read the data alone.
CSV = (
    "python -c \"import sys, xarray; [v.to_dataframe(n).to_csv(n + '.csv') for n, v in "
    'xarray.open_dataset(sys.argv[1]).items() if v.ndim]"'
)


def pages(project: Path, results: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The gallery and the lesson, written into the folder of results, and what to say of offers."""
    files.folder_for(results)
    cards = gallery.cards(project, results)
    all_offering = [*cards, *gallery.waiting(results, cards)]
    written = []
    gallery_page = index(cards, shelves.studies(project, results))
    for name, text in (("index.html", gallery_page), ("lesson.html", lesson_page(all_offering))):
        files.write_bytes(results / name, text.encode())
        written.append(results / name)
    return written, offered(all_offering).notes


def index(cards: Sequence[Card], studies: Sequence[tuple[str, str]] = ()) -> str:
    """The gallery, as HTML, with the titles and addresses of what else was measured."""
    spent = 0

    def image(run: Run) -> Markup | str:
        nonlocal spent
        address = vector.uri(vector.shrunk(run.figure))
        if spent + len(address) > BUDGET:
            return f"{run.folder}/figure.svg".replace("%", "%25").replace("#", "%23")
        spent += len(address)
        return Markup(address)

    return (
        _environment()
        .get_template("index.html")
        .render(
            _common(offered(cards)),
            groups=groups(cards),
            studies=studies,
            opened=len(cards) <= MOST_OPEN,
            image=image,
            in_csv=in_csv,
            size=size,
            panels=panels.panels,
            tally=tally(cards),
            most=MOST_CLAIMS,
            worst_first=worst_first,
            provenance=provenance,
            citation=citation,
            axis=axis,
        )
    )


def lesson_page(cards: Sequence[Card]) -> str:
    """The lesson, as HTML."""
    found = offered(cards)
    evidence = Evidence(found)
    return (
        _environment()
        .get_template("lesson.html")
        .render(
            _common(found),
            evidence=evidence,
            number=evidence.number,
            claim=evidence.claim,
            notes=found.notes,
            math_font=math_font(),
        )
    )


def math_font() -> Markup:
    """The font of the formulas as an address; few machines have one with the signs' right sizes."""
    font = base64.b64encode((HERE / "assets" / "math.woff2").read_bytes()).decode()
    return Markup(f"data:font/woff2;base64,{font}")


def offered(cards: Sequence[Card]) -> Offers:
    """What the experiments offer at the places that there are."""
    return offers.gather(cards, places())


@functools.cache
def places() -> tuple[Place, ...]:
    """Each place that can be offered: figures with a schema, numbers and claims of the lesson."""
    environment = _environment()
    source, _, _ = FOLDER.get_source(environment, "lesson.html")
    calls = environment.parse(source).find_all(jinja2.nodes.Call)
    named = {
        Place(call.node.name, call.args[0].as_const())
        for call in calls
        if isinstance(call.node, jinja2.nodes.Name) and call.node.name in ("number", "claim")
    }
    return (*(Place("figure", name) for name in lesson.FIGURES), *sorted(named))


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=FOLDER,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _common(found: Offers) -> dict[str, Any]:
    return {
        "css": Markup((HERE / "assets" / "page.css").read_text(encoding="utf-8")),
        "script": Markup(
            "\n".join(
                (HERE / "assets" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS
            )
        ),
        "figures": offers.figures(found),
        "still": still,
        "plain": numbers.significant,
        "extent": lambda packed: packed["shape"][0],
        "nearest": nearest,
        "end_texts": end_texts,
        "mark": mark,
        "first": lambda packed: float(lesson.unpacked(packed)[0]),
        "pairs": pairs,
    }


# ---- words and numbers of the gallery


def tally(cards: Sequence[Card]) -> Markup:
    """How many claims hold and fail, and what was not run, in one line."""
    held = sum(card.run.num_held for card in cards)
    failed = sum(card.run.num_failed for card in cards)
    parts = [
        Markup('<b class="holds">{}</b> claims hold').format(held),
        Markup('<b class="{}">{}</b> fail').format("fails" if failed else "", failed),
        Markup("<b>{}</b> experiments").format(len(cards)),
    ]
    for state, text in (("missing", "not run yet"), ("damaged", "with damaged results")):
        count = sum(card.run.state == state for card in cards)
        if count:
            parts.append(Markup('<b class="{}">{}</b> {}').format(state, count, text))
    more = [run for card in cards for run in card.others]
    if more:
        sad = sum(run.state != "holds" for run in more)
        text = Markup("<b>{}</b> more runs and sweeps").format(len(more))
        parts.append(
            text + (Markup(', <b class="fails">{}</b> not whole').format(sad) if sad else "")
        )
    return Markup(" · ").join(parts)


def groups(cards: Sequence[Card]) -> list[tuple[str, list[Card]]]:
    """The cards by group."""
    names = sorted({card.group for card in cards}, key=shelves.rank)
    return [(name, [card for card in cards if card.group == name]) for name in names]


def in_csv(run: Run) -> str:
    """The command that writes a run's data as CSV, said in the folder of the page."""
    return f"{CSV} {shlex.quote(f'{run.folder}/data.nc')}"


def worst_first(claims: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The claims, those that fail before those that hold."""
    return sorted(claims, key=lambda claim: bool(claim["verdict"] == "holds"))


def provenance(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of a run's record, one level deep, as text."""
    for key, value in record.items():
        if key == "failures":
            continue
        for name, entry in value.items() if isinstance(value, dict) else ((key, value),):
            shown = entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=False)
            yield str(name) if name == key else f"{key}: {name}", shown


def axis(values: Sequence[Any]) -> str:
    """The values of a swept key: all of a few, the ends of many."""
    shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
    if len(shown) > 6:
        return f"{shown[0]}, {shown[1]}, … {shown[-1]} ({len(shown)} values)"
    return ", ".join(shown)


def size(svg: str) -> Markup:
    """Width and height as attributes, so that the page does not move while it loads."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if not found:
        return Markup("")
    return Markup('width="{}" height="{}"').format(*(round(2 * float(n)) for n in found.groups()))


# ---- values of the interactive figures


def nearest(packed: Mapping[str, Any], value: float) -> int:
    """The index of the entry nearest to a value."""
    values = lesson.unpacked(packed)
    return min(range(len(values)), key=lambda i: abs(values[i] - value))


def end_texts(packed: Mapping[str, Any], decimals: int) -> tuple[str, str]:
    """The first and the last entry, as text."""
    values = lesson.unpacked(packed)
    return numbers.fixed(values[0], decimals), numbers.fixed(values[-1], decimals)


def mark(packed: Mapping[str, Any], value: float) -> tuple[str, str] | None:
    """A value and its place along the slider, in CSS; None where it is outside.

    A thumb of 16 pixels travels the length of the slider less its own width.
    """
    values = lesson.unpacked(packed)
    part = (value - values[0]) / ((values[-1] - values[0]) or math.inf)
    said = f"{value:g}".replace("-", numbers.MINUS)
    return (said, f"calc(8px + {part:.4f} * (100% - 16px))") if 0 < part < 1 else None


def pairs(values: Sequence[Any]) -> list[tuple[Any, str]]:
    """Each value with its text; thousands are set apart."""
    return [
        (value, f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else value)
        for value in values
    ]
