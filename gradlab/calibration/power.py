"""Which of the standard mutations a claim notices, and the smallest error in the weights' scale.

A mutation is planted in one function at a time, in the compiled program of a whole run: one that
the run never called is told apart from one that no claim noticed, and so is one that changes no
array at all. Which mutation of a function is planted is an argument of its program, and so is the
scale of the weights: it is compiled once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    # Compiled only where no program with a pick has an honest run of its own.
    honest = cache(partial(run_honestly, one, seed))
    draws = calls.keys() & mutations.of_weights(lambda W: W).keys()
    found = by_themselves(standard, calls)
    of_weights = [mutation for mutation in found if draws and len(mutation.sites) > 1]
    outcomes, smallest, broken = weights(one, seed, of_weights) if draws else ([], None, None)
    known = {outcome.key: outcome for outcome in before.outcomes} if before else {}
    others = [mutation for mutation in found if mutation not in of_weights]
    for group in oldest_first(variants.groups(others), known):
        asked = [Outcome(mutation.name, site_of(mutation), NOT_TRIED) for mutation in group]
        if deadline.is_over:
            outcomes += [known.get(outcome.key, outcome) for outcome in asked]
        else:
            outcomes += together(one, seed, honest, group)
    tried = {outcome.mutation for outcome in outcomes}
    missing = dict.fromkeys(m.name for m in standard if m.name not in tried)
    broken = honest().broken if broken is None else broken
    return Power(seed, tuple(sorted(broken)), tuple(outcomes), tuple(missing), smallest)


def site_of(mutation: Mutation) -> str:
    """The function that it is planted in; empty where there are several."""
    return next(iter(mutation.sites)) if len(mutation.sites) == 1 else ""


def oldest_first(
    found: Sequence[list[Mutation]], known: Mapping[tuple[str, str], Outcome]
) -> list[list[Mutation]]:
    """The groups with one that was never tried, then by the time since; the larger ones first."""

    def age(group: list[Mutation]) -> tuple[str, int]:
        keys = [(mutation.name, site_of(mutation)) for mutation in group]
        return min(known[key].date if key in known else "" for key in keys), -len(group)

    return sorted(found, key=age)


def together(
    one: Rehearsal, seed: int, honest: Callable[[], Honest], group: Sequence[Mutation]
) -> list[Outcome]:
    """The outcome of each mutation, by one program for all of them that can be traced."""
    whole = traces(one, seed, variants.planted_together(group, lambda: 0))
    able = [mutation for mutation in group if whole or traces(one, seed, mutation.sites)]
    found = [alone(honest(), mutation) for mutation in group if mutation not in able]
    if len(able) < 2:
        return found + [alone(honest(), mutation) for mutation in able]
    with picking(one, lambda picked: variants.planted_together(able, picked)) as arrays:
        # The same program, which may round otherwise than that of an honest run.
        like = run_honestly(one, seed, lambda: arrays(seed, 0))
        return found + [
            like.outcome(mutation.name, site_of(mutation), partial(arrays, seed, pick))
            for pick, mutation in enumerate(able, 1)
        ]


def alone(honest: Honest, mutation: Mutation) -> Outcome:
    """The outcome of a mutation in a program of its own."""
    one, seed = honest.rehearsal, honest.seed
    with planted(one, mutation.sites):
        return honest.outcome(mutation.name, site_of(mutation), lambda: computed(one, seed))


def traces(one: Rehearsal, seed: int, sites: Mapping[str, Change]) -> bool:
    """Whether the experiment can be traced with these wrong functions."""
    with planted(one, sites):
        try:
            jax.eval_shape(one.experiment.module.compute, one.arguments, jax.random.key(seed))
        except Exception:
            return False
    return True


def run_honestly(one: Rehearsal, seed: int, arrays: Callable[[], Any] | None = None) -> Honest:
    """The run with nothing planted."""
    data = one.data(seed, arrays() if arrays else computed(one, seed))
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


# ---- the weights


def weights(
    one: Rehearsal, seed: int, mutated: Sequence[Mutation]
) -> tuple[list[Outcome], float, frozenset[str]]:
    """The outcomes of weights that are some percent too large, and of the mutations of all weights.

    Then the smallest error of their scale that is noticed, and what the honest run breaks. One
    program serves for all.
    """
    with weights_scaled(one, mutated) as arrays:
        like = run_honestly(one, seed, lambda: arrays(seed, 1.0))

        def outcome(error: float) -> Outcome:
            name = f"weights {100 * error:g} % too large"
            return like.outcome(name, "", lambda: arrays(seed, 1 + error))

        outcomes = [outcome(percent / 100) for percent in PERCENT] + [
            like.outcome(mutation.name, "", partial(arrays, seed, 1.0, pick))
            for pick, mutation in enumerate(mutated, 1)
        ]
        smallest = max(
            smallest_noticed(
                [sign * size for size in SIZES], lambda error: outcome(error).status == NOTICED
            )
            for sign in (1, -1)
        )
    return outcomes, smallest, like.broken


@contextlib.contextmanager
def weights_scaled(
    one: Rehearsal, mutated: Sequence[Mutation] = ()
) -> Iterator[Callable[..., dict[str, Any]]]:
    """What `compute` returns of a seed, a factor of all weights, and which mutation is picked."""

    def sites(picked: Callable[[], Any]) -> dict[str, Change]:
        def scaled(W: Any) -> Any:
            return (picked()[0] * W).astype(W.dtype)

        scale = mutations.of_weights(scaled)
        picks = variants.planted_together(mutated, lambda: picked()[1])
        return {
            target: _both(scale.get(target, _same_function), picks.get(target, _same_function))
            for target in scale | picks
        }

    with picking(one, sites) as arrays:
        yield lambda seed, factor, pick=0: arrays(seed, (factor, pick))


def _same_function(honest: fault.Function) -> fault.Function:
    return honest


def _both(first: Change, second: Change) -> Change:
    return lambda honest: second(first(honest))


@contextlib.contextmanager
def picking(
    one: Rehearsal, sites: Callable[[Callable[[], Any]], Mapping[str, Change]]
) -> Iterator[Callable[[int, Any], dict[str, Any]]]:
    """What `compute` returns of a seed and a pick, by one program for all picks.

    Args:
        one: the experiment.
        sites: from a function that gives the pick, as it is traced, to what is planted.
    """
    now, compute = dict[str, Any](), one.experiment.module.compute

    def program(cfg: Any, key: Any, pick: Any) -> Any:
        now["pick"] = pick
        return compute(cfg, key)

    compiled = jax.jit(program)
    with planted(one, sites(lambda: now["pick"])):
        yield lambda seed, pick: compiled(one.arguments, jax.random.key(seed), pick)


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
