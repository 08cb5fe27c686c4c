"""What the experiments offer to the lesson: gathered by place, each place taken once.

A place that nobody offers, or whose experiment has no dataset, gets a sentence that says so.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradlab.experiment import lesson, schema
from gradlab.experiment.lesson import Offer
from gradlab.page.gallery import Card, Run

# What a place can hold, and the part of an `Offer` that says it.
KINDS = {"figure": "figures", "number": "numbers", "claim": "claims"}


class Place(NamedTuple):
    """A place of the lesson: what it holds, an entry of `KINDS`, and its name."""

    kind: str
    name: str

    def __str__(self) -> str:
        """As a reader is told of it."""
        return f"the {self.kind} '{self.name}'"


@dataclass(frozen=True)
class Offered:
    """What stands at a place: the part of an offer, the experiment that made it, and its run."""

    what: Any
    experiment: str
    command: str
    run: Run


@dataclass(frozen=True)
class Offers:
    """What is offered, by place, and a sentence for each offer that cannot be taken."""

    places: Mapping[Place, Offered]
    notes: tuple[str, ...]


# ---- by place


def gather(cards: Sequence[Card], known: Sequence[Place]) -> Offers:
    """All offers of the cards by place.

    Where several experiments offer one place, the first by name that has a dataset takes it.
    """
    by_place: dict[Place, list[Offered]] = defaultdict(list)
    notes = [card.note for card in cards if card.note]
    for card in cards:
        for place, what in _parts(card.offer):
            if place in known:
                by_place[place].append(Offered(what, card.name, card.command, card.run))
            else:
                notes.append(f"LESSON of '{card.name}': {_unknown(place, known)}")
    rows = {place: sorted(row, key=_precedence) for place, row in by_place.items()}
    taken = {place: row[0] for place, row in rows.items()}
    return Offers(taken, (*notes, *_doubled(rows)))


def _parts(offer: Offer) -> Iterator[tuple[Place, Any]]:
    for kind, field in KINDS.items():
        for name, what in getattr(offer, field).items():
            yield Place(kind, name), what


def _precedence(offered: Offered) -> tuple[bool, str]:
    return offered.run.data is None, offered.experiment


def _unknown(place: Place, known: Sequence[Place]) -> str:
    names = [other.name for other in known if other.kind == place.kind]
    return schema.unknown(f"the {place.kind}", place.name, names)


def _doubled(rows: Mapping[Place, Sequence[Offered]]) -> Iterator[str]:
    """A sentence for each group of experiments that offer the same places."""
    groups: dict[tuple[str, ...], list[Place]] = defaultdict(list)
    for place, row in rows.items():
        if len(row) > 1:
            groups[tuple(offered.experiment for offered in row)].append(place)
    for names, places in groups.items():
        who = " and ".join(f"'{name}'" for name in names)
        what = "; ".join(_listed(kind, places) for kind in KINDS if kind in dict(places))
        yield f"{who} offer the same places ({what}); shown is what '{names[0]}' offers"


def _listed(kind: str, places: Sequence[Place]) -> str:
    names = [f"'{place.name}'" for place in places if place.kind == kind]
    return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names)}"


# ---- figures


@dataclass(frozen=True)
class Drawn:
    """A figure that can be dragged: its place, who offers it, and what it is given.

    `problem` says in a sentence why there is nothing to show; it is empty where there is.
    `command` computes what is missing, where a command can.
    """

    name: str
    payload: dict[str, Any] | None
    experiment: str = ""
    problem: str = ""
    command: str = ""


def figures(offers: Offers) -> dict[str, Drawn]:
    """The figures by place, with the format ends drawn into the chain."""
    found = {name: figure_at(offers, name) for name in lesson.FIGURES}
    ends = found.pop("format ends")
    chain = found["chain"]
    if chain.payload is not None:
        payload = with_format_ends(chain.payload, ends.payload) | {"missing": ends.problem}
        found["chain"] = Drawn("chain", payload, chain.experiment)
    return found


def figure_at(offers: Offers, name: str) -> Drawn:
    """The figure at a place."""
    place = Place("figure", name)
    offered = offers.places.get(place)
    if offered is None:
        return Drawn(name, None, problem=nobody(place))
    experiment, data = offered.experiment, offered.run.data
    if data is None:
        return Drawn(name, None, experiment, f"{experiment} has no dataset yet", offered.command)
    try:
        payload = dict(offered.what(data))
        json.dumps(payload, allow_nan=False)
        lacking = lesson.FIGURES[name].__required_keys__ - payload.keys()
        if lacking:
            raise KeyError(", ".join(sorted(lacking)))
    except Exception as error:  # the function is a user's: it may do anything
        why = (
            f"the dataset of {experiment} lacks what {place} needs: {type(error).__name__}: {error}"
        )
        return Drawn(name, None, experiment, why, offered.command)
    return Drawn(name, payload, experiment)


def nobody(place: Place) -> str:
    """The sentence for a place that is not offered."""
    return f"no experiment here offers {place}"


def with_format_ends(chain: Mapping[str, Any], ends: Mapping[str, Any] | None) -> dict[str, Any]:
    """The chain's payload with the depths at which formats fail, on the chain's own weights.

    A weight that `ends` lacks has depths of nan: not computed.
    """
    if ends is None:
        return {**chain, "formats": [], "edges": []}
    w, given = lesson.unpacked(chain["w"]), lesson.unpacked(ends["w"])
    nearest = np.argmin(np.abs(given[:, None] - w), axis=0)
    there = np.isclose(given[nearest], w, rtol=1e-9, atol=0)

    def on_chain(packed: Mapping[str, Any]) -> lesson.Packed:
        depths = lesson.unpacked(packed)[:, nearest]
        return lesson.exact(np.where(there, depths, np.nan))

    return {
        **chain,
        "formats": ends["formats"],
        "edges": ends["edges"],
        **{kind: on_chain(ends[f"first_{kind}"]) for kind in ("zero", "infinite", "wrong")},
    }
