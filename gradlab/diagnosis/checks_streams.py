"""Checks of residual streams: wired wrongly, whatever the weights are, or not scaled by depth."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from gradlab.diagnosis import changes, laws, operations, rewiring, skips
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.checks_weights import role_levels
from gradlab.diagnosis.facts import Facts, streams
from gradlab.diagnosis.verdicts import Verdict
from gradlab.theory import meanfield


def broken(facts: Facts) -> Iterator[Verdict]:
    """A block without the residual sum that its alike have, or a sum of a detached state."""
    yield from _skipless(facts)
    yield from _detached(facts)


def _skipless(facts: Facts) -> Iterator[Verdict]:
    anatomy = facts.anatomy
    for gap in anatomy.gaps:
        name = anatomy.layers[gap.layer].name
        yield Verdict(
            "broken stream",
            name,
            float(skips.is_filled(anatomy.program, gap)),
            1.0,
            1.0,
            1.0,
            f"What it makes takes the place of the stream; behind its alike ({starred(name)}) it "
            "is added to the stream. All that came before passes through this one branch.",
            (changes.add_stream(name),),
        )


def _detached(facts: Facts) -> Iterator[Verdict]:
    anatomy = facts.anatomy
    for run in streams(anatomy):
        for before, k in pairwise(run):
            step = skips.stopped_by(anatomy.program, anatomy.residuals[k])
            is_passed = step is None or operations.PASSED in step.params
            names = [facts.layers[i].name for i in anatomy.residuals[before].last]
            yield Verdict(
                "broken stream",
                facts.layers[anatomy.residuals[k].last[-1]].name,
                float(is_passed),
                1.0,
                1.0,
                1.0,
                "The stream that it is added to is detached: all in front of it learns through "
                "this one branch.",
                (changes.straight_through(f"stop_gradient@{names[-1]}"),),
            )


def doubled(facts: Facts) -> Iterator[Verdict]:
    """A stream that each sum adds more than once, as a skip in the block and one around it do."""
    anatomy = facts.anatomy
    for run in streams(anatomy):
        if any(anatomy.residuals[k].normed for k in run):
            continue  # a norm behind the sum takes the factor off again
        factors = [rewiring.stream_factor(anatomy, k) for k in run]
        mean = math.exp(float(np.mean(np.log(np.maximum(factors, 1e-30)))))
        off = [k for k, factor in zip(run, factors, strict=True) if factor > 1]
        last = [facts.layers[i].name for k in off for i in anatomy.residuals[k].last]
        roles = list(dict.fromkeys(map(starred, last)))
        yield Verdict(
            "doubled stream",
            ", ".join(roles) or starred(facts.layers[anatomy.residuals[run[0]].last[-1]].name),
            mean,
            1.0,
            0.0,
            math.exp(meanfield.DEPTH_SCALES / (2 * len(run))),
            f"Each of {len(run)} sums adds the state before it {mean:.3g} times, so that over all "
            f"it and its gradient grow {math.exp(min(len(run) * math.log(mean), 700)):.3g} times, "
            "and early branches count for all.",
            tuple(changes.single_stream(role) for role in roles),
        )


def depth_scaling(facts: Facts) -> Iterator[Verdict]:
    """A residual stream that grows as it does where branches are not scaled by their number."""
    levels = role_levels(facts)
    for run in streams(facts.anatomy):
        residuals = [facts.anatomy.residuals[k] for k in run]
        if any(r.normed for r in residuals) or len(run) < 4:
            continue
        numbers = facts.measured.residuals
        growth = 2 * float(numbers["log_total"][run[-1]] - numbers["log_stream"][run[0]])
        num = len(run)
        roles = [role for role in _last_roles(facts, run) if not _has_scaling(levels, *role, num)]
        named = sorted(role for role, _ in roles)
        excess = growth - laws.scaled_growth(growth, num)
        ratio = math.exp(excess / 2) if excess < 1400 else math.inf
        factor = num**-0.5
        yield Verdict(
            "depth scaling",
            ", ".join(named or sorted(role for role, _ in _last_roles(facts, run))),
            ratio if named else 1.0,
            1.0,
            0.0,
            math.exp(laws.MOST_GROWTH / 2),
            f"Branches are not scaled by their number: over {num} of them the stream grows "
            f"{math.exp(min(growth / 2, 700)):.3g} times in length, {ratio:.2g} times more than "
            f"with 1/√{num} on each branch's last matrix.",
            tuple(changes.scale(role, factor) for role in named),
        )


def _last_roles(facts: Facts, run: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    """The roles that end the branches of a stream, each with the others of its branches."""
    found: dict[str, set[str]] = defaultdict(set)
    for k in run:
        residual = facts.anatomy.residuals[k]
        roles = {starred(facts.layers[i].name) for i in residual.layers}
        for i in residual.last:
            found[starred(facts.layers[i].name)] |= roles
    return [(role, tuple(sorted(others - {role}))) for role, others in found.items()]


def _has_scaling(
    levels: dict[str, tuple[float, float]], role: str, others: tuple[str, ...], num: int
) -> bool:
    """Whether a role's scale is below that of its branch's others by half of 1/√num, in logs.

    By its standard deviation, and by √fan_in times that: either law may be the model's.
    """
    own, rest = levels.get(role), [levels[other] for other in others if other in levels]
    if own is None or not rest:
        return False
    return all(own[i] < min(other[i] for other in rest) - math.log(num) / 4 for i in (0, 1))
