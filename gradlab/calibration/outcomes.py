"""What became of mutations: an outcome each, the power of an experiment's claims, their record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Each a fifth larger than the one before, from a millionth on.
SIZES = tuple(1e-6 * 1.2**step for step in range(72))

NOTICED, UNNOTICED, NO_CHANGE = "noticed", "not noticed", "changes nothing"
HARMLESS, RAISES, NOT_TRIED = "cannot matter", "raises", "not tried"


@dataclass(frozen=True)
class Outcome:
    """What became of one mutation.

    Attributes:
        mutation: what was wrong, in words.
        site: the function that it was planted in; empty for all draws of weights.
        status: noticed, not noticed, changes nothing, cannot matter (as the experiment says),
            raises, or not tried for want of time.
        claims: the sentences of the claims that it broke, what was raised, or why it cannot matter.
        laws: the predictions that it moved, which it must not.
        date: when it was tried (UTC).
    """

    mutation: str
    site: str
    status: str
    claims: tuple[str, ...] = ()
    laws: tuple[str, ...] = ()
    date: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the others of its experiment."""
        return self.mutation, self.site


@dataclass(frozen=True)
class Power:
    """What an experiment notices.

    Attributes:
        seed: of all its runs.
        broken: the claims that the honest run breaks, of which nothing can be said.
        outcomes: of the mutations whose functions it calls.
        not_called: the mutations of which it calls no function.
        smallest: the smallest relative error of the weights' scale that a claim notices, too large
            and too small; None where it draws none, infinite where not even half of it is noticed.
    """

    seed: int
    broken: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    not_called: tuple[str, ...]
    smallest: float | None


def wrong(found: Mapping[str, Power]) -> list[str]:
    """The mutations that moved a prediction: they measure nothing."""
    return [
        f"{name}: {outcome.mutation} in {outcome.site} moves {', '.join(outcome.laws)}"
        for name, power in found.items()
        for outcome in power.outcomes
        if outcome.laws
    ]


def restored(plain: Mapping[str, Any]) -> Power:
    """What a record says of one experiment."""
    outcomes = (
        Outcome(
            one["mutation"],
            one["site"],
            one["status"],
            tuple(one["claims"]),
            tuple(one["laws"]),
            one["date"],
        )
        for one in plain["outcomes"]
    )
    smallest = plain["smallest"]
    return Power(
        plain["seed"],
        tuple(plain["broken"]),
        tuple(outcomes),
        tuple(plain["not_called"]),
        None if smallest is None else float(smallest),
    )


def as_record(found: Mapping[str, Power]) -> dict[str, Any]:
    """The outcomes as JSON holds them; infinity as text, which JSON lacks."""
    experiments = {name: asdict(power) for name, power in found.items()}
    for plain in experiments.values():
        if plain["smallest"] == float("inf"):
            plain["smallest"] = "inf"
    return {"wrong": wrong(found), "experiments": experiments}


def as_page(found: Mapping[str, Power]) -> str:
    """The outcomes as Markdown: a line for each experiment, then a table for each."""
    lines = [
        "| experiment | smallest error of the weights' scale | noticed | not noticed | not tried |",
        "|---|--:|--:|---|--:|",
    ]
    for name, power in found.items():
        kinds = [outcome.status for outcome in power.outcomes]
        missed = [shown(outcome) for outcome in power.outcomes if outcome.status == UNNOTICED]
        lines.append(
            f"| {name} | {percent(power.smallest)} | {kinds.count(NOTICED)} | "
            f"{'; '.join(missed) or 'none'} | {kinds.count(NOT_TRIED) or ''} |"
        )
    for name, power in found.items():
        lines += ["", f"## {name}", "", f"Seed {power.seed}; never called: "]
        lines[-1] += f"{', '.join(power.not_called) or 'none'}."
        lines += [f"\nBroken without a mutation: {'; '.join(power.broken)}."] * bool(power.broken)
        lines += ["", "| mutation | outcome | claims |", "|---|---|---|"]
        lines += [
            f"| {shown(outcome)} | {outcome.status} | {'; '.join(outcome.claims)} |"
            for outcome in power.outcomes
        ]
    return "\n".join([*lines, *(f"\nA law was moved: {text}." for text in wrong(found))])


def shown(outcome: Outcome) -> str:
    """The mutation and where it was planted."""
    return outcome.mutation + (f" (`{outcome.site}`)" if outcome.site else "")


def percent(size: float | None) -> str:
    """A relative size in percent; what none is, in words."""
    if size is None:
        return "no weights"
    return f"{100 * size:.2g} %" if size < float("inf") else f"above {100 * SIZES[-1]:.0f} %"
