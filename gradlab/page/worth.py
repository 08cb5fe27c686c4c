"""What an experiment's claims are worth, from the records of `make seeds` and `make power`.

A record that is missing says nothing; of one that is damaged the card says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What became of a mutation, as the record has it.
NOTICED, UNNOTICED, HARMLESS = "noticed", "not noticed", "cannot matter"


@dataclass(frozen=True)
class Worth:
    """What stands on a card about its claims.

    Attributes:
        sentences: what they would notice, what not, and how often chance breaks one.
        outcomes: of each mutation: what was wrong, where, what became of it, what broke.
        made: how and when this was found.
    """

    sentences: tuple[str, ...] = ()
    outcomes: tuple[tuple[str, str, str, str], ...] = ()
    made: str = ""


def worth_of(results: Path, name: str) -> Worth:
    """What the records in a folder of results say about one experiment."""
    outcomes: tuple[tuple[str, str, str, str], ...] = ()
    sentences, made = [], ""
    for record_of, told in (("power", _power), ("seeds", _seeds), ("seeds_full", _at_full_scale)):
        path = results / f"{record_of}.json"
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if (one := record["experiments"].get(name)) is None:
                continue
            sentences += told(one)
            if record_of == "power":
                date, scale = one["made"]["date"], one["made"]["scale"]
                made = f"{date.partition(' ')[0]}, scale={scale}, seed={one['seed']}"
                outcomes = tuple(map(_row, one["outcomes"]))
        except (
            OSError,
            ArithmeticError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            sentences.append(f"{path.name} is damaged ({type(error).__name__})")
    return Worth(tuple(sentences), outcomes, made)


def _power(one: Mapping[str, Any]) -> list[str]:
    """What is noticed and what is not, by the names of the mutations."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in one["outcomes"]:
        by_name.setdefault(outcome["mutation"], []).append(outcome)
    tried = {name: found for name, found in by_name.items() if not name.startswith("weights")}
    noticed = [name for name, found in tried.items() if _statuses(found) == {NOTICED}]
    missed = [
        f"{outcome['mutation']} ({outcome['site']})" if outcome["site"] else outcome["mutation"]
        for found in by_name.values()
        for outcome in found
        if outcome["status"] == UNNOTICED
    ]
    would = [*_scale(one["smallest"]), *noticed]
    sentences = [f"Would notice {'; '.join(would)}."] if would else []
    sentences += [f"Not: {'; '.join(missed)}."] if missed else []
    reasons: dict[str, dict[str, None]] = {}  # each with the mutations, once each
    for outcome in one["outcomes"]:
        if outcome["status"] == HARMLESS:
            reasons.setdefault(outcome["claims"][0], {})[outcome["mutation"]] = None
    return sentences + [f"{', '.join(them)}: {why}." for why, them in reasons.items()]


def _statuses(found: Sequence[Mapping[str, Any]]) -> set[str]:
    """How the runs ended in which something was wrong and could be judged."""
    return {outcome["status"] for outcome in found} & {NOTICED, UNNOTICED, HARMLESS}


def _scale(smallest: Any) -> list[str]:
    if smallest is None or smallest == "inf":
        return []
    return [f"weights off by {100 * float(smallest):.2g} %"]


def _seeds(one: Mapping[str, Any]) -> list[str]:
    """How often chance breaks a claim, as stated and as seen."""
    if not one.get("draws", True):
        return ["It draws nothing: chance breaks no claim."]
    return [f"By chance a claim fails {_stated_and_seen(one)}."]


def _at_full_scale(one: Mapping[str, Any]) -> list[str]:
    """The same at full scale, which fewer seeds are drawn at."""
    return [f"At full scale {_stated_and_seen(one)}."] if one.get("draws", True) else []


def _stated_and_seen(one: Mapping[str, Any]) -> str:
    claims = one["claims"]
    stated = sum(float(claim["chance"]) for claim in claims)
    failed, runs = sum(int(claim["failed"]) for claim in claims), int(one["num_seeds"])
    text = f"at most once in {1 / stated:,.0f} runs" if stated else "never"
    return f"{text}: {failed} failure{'' if failed == 1 else 's'} on {runs} fresh seeds"


def _row(outcome: Mapping[str, Any]) -> tuple[str, str, str, str]:
    claims = "; ".join(outcome["claims"])
    return outcome["mutation"], outcome["site"], outcome["status"], claims
