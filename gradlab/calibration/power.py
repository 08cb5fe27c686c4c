"""Which of the standard mutations a claim notices, and the smallest error in the weights' scale.

A mutation is planted in one function at a time, in the compiled program of a whole run: one that
the run never called is told apart from one that no claim noticed, and so is one that changes no
array at all. The scale of the weights is an argument of its program, so that bisection compiles
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from gradlab.calibration import mutations, records, rehearsal
from gradlab.calibration.mutations import Change, Mutation
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.calibration.workers import Deadline
from gradlab.experiment import fault

# Each a fifth larger than the one before, from a millionth on.
SIZES = tuple(1e-6 * 1.2**step for step in range(72))
PERCENT = (1, 3, 10)

NOTICED, UNNOTICED, NO_CHANGE = "noticed", "not noticed", "changes nothing"
HARMLESS, RAISES, NOT_TRIED = "cannot matter", "raises", "not tried"

# Arrays of a dataset that hold predictions, by what is in their names.
PREDICTIONS = ("law", "predicted", "theory")


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


@dataclass(frozen=True)
class Honest:
    """The honest run that every wrong one is held against."""

    rehearsal: Rehearsal
    seed: int
    data: xr.Dataset
    broken: frozenset[str]

    def outcome(self, mutation: str, site: str, arrays: Callable[[], Any]) -> Outcome:
        """What the claims say about the arrays of a wrong run."""
        try:
            data = self.rehearsal.data(self.seed, arrays())
            claims = self.rehearsal.claims(data)
        except Exception as error:
            words = (str(error).strip().splitlines() or [""])[0]
            told = (f"{type(error).__name__}: {words}"[:200],)
            return Outcome(mutation, site, RAISES, told, date=records.now())
        changed = [str(name) for name in self.data if not _same(self.data, data, str(name))]
        laws = tuple(name for name in changed if any(word in name for word in PREDICTIONS))
        broken = {claim.sentence for claim in claims if not claim.holds} - self.broken
        status, told = NO_CHANGE, tuple(sorted(broken))
        if broken:
            status = NOTICED
        elif changed and (why := self.why_harmless(mutation, site)):
            status, told = HARMLESS, (why,)
        elif changed:
            status = UNNOTICED
        return Outcome(mutation, site, status, told, laws, records.now())

    def why_harmless(self, mutation: str, site: str) -> str:
        """Why this cannot matter to the claims, by the experiment's own word; empty where none."""
        harmless = self.rehearsal.experiment.harmless
        return harmless.get(mutation, harmless.get(site, ""))


def under_mutations(
    file: Path, scale: str, entropy: int, seconds: float, before: Power | None
) -> Power:
    """The power of an experiment's claims, as much of it as its time allows.

    What was tried longest ago comes first, and what is not reached stays as it was found before.
    """
    deadline, one = Deadline(seconds), rehearsal.prepared(file, scale)
    seed = next(rehearsal.fresh_seeds(entropy, file.stem))
    standard = mutations.standard()
    calls = calls_traced(one, seed, standard)
    honest = run_honestly(one, seed)
    draws = calls.keys() & mutations.of_weights(lambda W: W).keys()
    outcomes, smallest = weights(honest) if draws else ([], None)
    known = {outcome.key: outcome for outcome in before.outcomes} if before else {}
    for mutation in oldest_first(each_name_first(by_themselves(standard, calls)), known):
        asked = Outcome(mutation.name, site_of(mutation), NOT_TRIED)
        if deadline.is_over:
            outcomes.append(known.get(asked.key, asked))
            continue
        with planted(one, mutation.sites):
            outcomes.append(honest.outcome(*asked.key, lambda: computed(one, seed)))
    tried = {outcome.mutation for outcome in outcomes}
    missing = dict.fromkeys(m.name for m in standard if m.name not in tried)
    return Power(seed, tuple(sorted(honest.broken)), tuple(outcomes), tuple(missing), smallest)


def site_of(mutation: Mutation) -> str:
    """The function that it is planted in; empty where there are several."""
    return next(iter(mutation.sites)) if len(mutation.sites) == 1 else ""


def oldest_first(
    found: Sequence[Mutation], known: Mapping[tuple[str, str], Outcome]
) -> list[Mutation]:
    """Those never tried, then by the time since they were; otherwise as they come."""

    def last_tried(mutation: Mutation) -> str:
        outcome = known.get((mutation.name, site_of(mutation)))
        return outcome.date if outcome else ""

    return sorted(found, key=last_tried)


def each_name_first(found: Sequence[Mutation]) -> list[Mutation]:
    """Each mutation in one function, then each in its next: time may end before all are tried."""
    names = [mutation.name for mutation in found]
    places = sorted(range(len(found)), key=lambda place: names[:place].count(names[place]))
    return [found[place] for place in places]


def run_honestly(one: Rehearsal, seed: int) -> Honest:
    """The run with nothing planted."""
    data = one.data(seed, computed(one, seed))
    broken = frozenset(claim.sentence for claim in one.claims(data) if not claim.holds)
    return Honest(one, seed, data, broken)


def computed(one: Rehearsal, seed: int) -> dict[str, Any]:
    """What `compute` returns, compiled as it stands now."""
    compute = one.experiment.module.compute
    return jax.jit(compute)(one.arguments, jax.random.key(seed))


@contextlib.contextmanager
def planted(one: Rehearsal, sites: Mapping[str, Change]) -> Iterator[None]:
    """All the wrong functions in their places while the block runs."""
    with contextlib.ExitStack() as stack:
        for target, made in sites.items():
            stack.enter_context(fault.change(target, made)(one.experiment))
        yield


Calls = dict[str, list[frozenset[str]]]


def calls_traced(one: Rehearsal, seed: int, standard: Sequence[Mutation]) -> Calls:
    """Each function, of all that can be mutated, that a run calls: for each call those around it.

    Nothing is compiled for it.
    """
    calls: Calls = {}
    around: list[str] = []

    def counting(target: str) -> Change:
        def made(honest: fault.Function) -> fault.Function:
            def counted(*args: Any, **kwargs: Any) -> Any:
                calls.setdefault(target, []).append(frozenset(around))
                around.append(target)
                try:
                    return honest(*args, **kwargs)
                finally:
                    around.pop()

            return counted

        return made

    every = {target for mutation in standard for target in mutation.sites}
    every |= mutations.of_weights(lambda W: W).keys()
    with planted(one, {target: counting(target) for target in every}):
        jax.eval_shape(one.experiment.module.compute, one.arguments, jax.random.key(seed))
    return calls


def by_themselves(standard: Sequence[Mutation], calls: Calls) -> list[Mutation]:
    """The mutations of functions that are called, at least once not within another such function.

    Whatever is wrong with the model that the outer one was given is wrong with the inner one's.
    """
    sites: dict[str, set[str]] = {}
    for mutation in standard:
        sites.setdefault(mutation.name, set()).update(mutation.sites)
    return [
        mutation
        for mutation in standard
        if any(
            not around & sites[mutation.name]
            for target in mutation.sites
            for around in calls.get(target, ())
        )
    ]


# ---- the scale of the weights


def weights(honest: Honest) -> tuple[list[Outcome], float]:
    """The outcomes of weights that are some percent too large, and the smallest error noticed."""
    with weights_scaled(honest.rehearsal) as arrays:

        def outcome(error: float) -> Outcome:
            name = f"weights {100 * error:g} % too large"
            return honest.outcome(name, "", lambda: arrays(honest.seed, 1 + error))

        outcomes = [outcome(percent / 100) for percent in PERCENT]
        smallest = max(
            smallest_noticed(
                [sign * size for size in SIZES], lambda error: outcome(error).status == NOTICED
            )
            for sign in (1, -1)
        )
    return outcomes, smallest


@contextlib.contextmanager
def weights_scaled(one: Rehearsal) -> Iterator[Callable[[int, float], dict[str, Any]]]:
    """What `compute` returns of a seed and a factor of all weights, by one program for all."""
    now, compute = dict[str, Any](), one.experiment.module.compute

    def scaled(cfg: Any, key: Any, factor: Any) -> Any:
        now["factor"] = factor
        return compute(cfg, key)

    program = jax.jit(scaled)
    sites = mutations.of_weights(lambda W: (now["factor"] * W).astype(W.dtype))
    with planted(one, sites):
        yield lambda seed, factor: program(one.arguments, jax.random.key(seed), factor)


def smallest_noticed(errors: Sequence[float], noticed: Callable[[float], bool]) -> float:
    """The size of the first error noticed, larger ones being noticed too; infinite where none."""
    if not noticed(errors[-1]):
        return float("inf")
    low, high = -1, len(errors) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if noticed(errors[middle]) else (middle, high)
    return abs(errors[high])


def _same(one: xr.Dataset, other: xr.Dataset, name: str) -> bool:
    """Whether an array has the same bits in two datasets; texts and numbers alike."""
    return name in other and bool(one[name].identical(other[name]))


# ---- the record


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
            *(one[name] for name in ("mutation", "site", "status")),
            *(tuple(one[name]) for name in ("claims", "laws")),
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


def outcomes_record(found: Mapping[str, Power]) -> dict[str, Any]:
    """The outcomes as JSON holds them; infinity as text, which JSON lacks."""
    experiments = {name: asdict(power) for name, power in found.items()}
    for plain in experiments.values():
        if plain["smallest"] == float("inf"):
            plain["smallest"] = "inf"
    return {"wrong": wrong(found), "experiments": experiments}


def outcomes_page(found: Mapping[str, Power]) -> str:
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
