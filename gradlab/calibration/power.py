"""Which of the standard mutations a claim notices, and the smallest error in the weights' scale.

A mutation is planted in one function at a time, in the compiled program of a whole run: one that
the run never called is told apart from one that no claim noticed, and so is one that changes no
array at all. Which mutation is planted is an argument of the program, and so is the scale of the
weights: one program serves for all that an experiment is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import xarray as xr

from gradlab.calibration import mutations, records, rehearsal, variants
from gradlab.calibration.mutations import Mutation
from gradlab.calibration.outcomes import (
    HARMLESS,
    NO_CHANGE,
    NOT_TRIED,
    NOTICED,
    RAISES,
    SIZES,
    UNNOTICED,
    Outcome,
    Power,
)
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.calibration.variants import Program
from gradlab.calibration.workers import Deadline
from gradlab.calibration.wrong import Change
from gradlab.experiment import fault

PERCENT = (1, 3, 10)

# Arrays of a dataset that hold predictions, by what is in their names.
PREDICTIONS = ("law", "predicted", "theory")


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
            raised = (f"{type(error).__name__}: {words}"[:200],)
            return Outcome(mutation, site, RAISES, raised, date=records.now())
        changed = [str(name) for name in self.data if not _same(self.data, data, str(name))]
        laws = tuple(name for name in changed if any(word in name for word in PREDICTIONS))
        broken = {claim.sentence for claim in claims if not claim.holds} - self.broken
        status: str = NO_CHANGE
        told: tuple[str, ...] = tuple(sorted(broken))
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
    draws = bool(calls.keys() & mutations.of_weights(lambda W: W).keys())
    known = {outcome.key: outcome for outcome in before.outcomes} if before else {}
    found = oldest_first(by_themselves(standard, calls), known)
    programs = variants.programs(one, found)
    # Of the same program each: another may round otherwise.
    likes = [run_honestly(one, seed, partial(each.arrays, seed)) for each in programs]
    outcomes, smallest = weights(likes[0], programs[0]) if draws else ([], None)
    honest = cache(partial(run_honestly, one, seed))
    tries: list[tuple[Mutation, Callable[[], Outcome]]] = [
        (mutation, partial(picked, like, each, number))
        for like, each in zip(likes, programs, strict=True)
        for number, mutation in each.mutations.items()
    ]
    tries += [(one, partial(alone, honest, one)) for each in programs for one in each.unable]
    for mutation, outcome in tries:
        asked = Outcome(mutation.name, site_of(mutation), NOT_TRIED)
        outcomes.append(known.get(asked.key, asked) if deadline.is_over else outcome())
    tried = {outcome.mutation for outcome in outcomes}
    missing = dict.fromkeys(m.name for m in standard if m.name not in tried)
    return Power(seed, tuple(sorted(likes[0].broken)), tuple(outcomes), tuple(missing), smallest)


def site_of(mutation: Mutation) -> str:
    """The function that it is planted in; empty where there are several."""
    return next(iter(mutation.sites)) if len(mutation.sites) == 1 else ""


def oldest_first(
    found: Sequence[Mutation], known: Mapping[tuple[str, str], Outcome]
) -> list[Mutation]:
    """The mutations that were never tried, then the others by the time since."""

    def age(mutation: Mutation) -> str:
        key = mutation.name, site_of(mutation)
        return known[key].date if key in known else ""

    return sorted(found, key=age)


def picked(like: Honest, program: Program, number: int) -> Outcome:
    """The outcome of a mutation that is picked in a program, of which an honest run is known."""
    mutation = program.mutations[number]
    arrays = partial(program.arrays, like.seed, number)
    return like.outcome(mutation.name, site_of(mutation), arrays)


def alone(honest: Callable[[], Honest], mutation: Mutation) -> Outcome:
    """The outcome of a mutation in a program of its own."""
    like = honest()
    with variants.planted(like.rehearsal, mutation.sites):
        arrays = partial(computed, like.rehearsal, like.seed)
        return like.outcome(mutation.name, site_of(mutation), arrays)


def run_honestly(one: Rehearsal, seed: int, arrays: Callable[[], Any] | None = None) -> Honest:
    """The run with nothing planted."""
    data = one.data(seed, arrays() if arrays else computed(one, seed))
    broken = frozenset(claim.sentence for claim in one.claims(data) if not claim.holds)
    return Honest(one, seed, data, broken)


def computed(one: Rehearsal, seed: int) -> dict[str, Any]:
    """What `compute` returns, compiled as it stands now."""
    compute = one.experiment.module.compute
    return jax.jit(compute)(one.arguments, jax.random.key(seed))


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
    with variants.planted(one, {target: counting(target) for target in every}):
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


def weights(like: Honest, program: Program) -> tuple[list[Outcome], float]:
    """The outcomes of weights that are some percent too large.

    Then the smallest error of their scale that is noticed.
    """

    def outcome(error: float) -> Outcome:
        name = f"weights {100 * error:g} % too large"
        return like.outcome(name, "", lambda: program.arrays(like.seed, factor=1 + error))

    smallest = max(
        smallest_noticed(
            [sign * size for size in SIZES], lambda error: outcome(error).status == NOTICED
        )
        for sign in (1, -1)
    )
    return [outcome(percent / 100) for percent in PERCENT], smallest


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
