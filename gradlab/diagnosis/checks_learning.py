"""Checks of what can learn: gates, parameters that no gradient reaches, one layer that has all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnosis import changes, laws, operations
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.facts import Facts
from gradlab.diagnosis.verdicts import Verdict


def gates(facts: Facts) -> Iterator[Verdict]:
    """Gates that stand open or shut whatever they read, each of a role at all its steps."""
    numbers = facts.measured.gates
    roles: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for k, gate in enumerate(facts.anatomy.gates):
        roles[(*sorted({facts.layers[i].name for i in gate.layers}), gate.piece)].append(k)
    for members in roles.values():
        slope, mean = (float(np.mean(numbers[name][members])) for name in ("slope", "mean"))
        rms = float(np.sqrt(np.mean(np.square(numbers["rms"][members]))))
        gate = facts.anatomy.gates[members[0]]
        biases = [facts.anatomy.names[b] for b in gate.biases]
        weights = list(dict.fromkeys(facts.layers[i].name for i in gate.layers))
        is_biased = abs(mean) > 0.7 * rms and biases
        name = biases[0] if is_biased else weights[0]
        state = "open" if mean > 0 else "shut"
        yield Verdict(
            "gate",
            name,
            slope,
            1.0,
            laws.smallest_slope(),
            math.inf,
            f"A gate that it makes stands {state}: its pre-activations have a mean of {mean:.3g} "
            f"and a root mean square of {rms:.3g}, and its slope is {slope:.2g} of the largest.",
            _opened(
                list(map(facts.pattern, biases)),
                list(map(facts.pattern, weights)),
                bool(is_biased),
                rms,
            ),
        )


def _opened(
    biases: Sequence[str], weights: Sequence[str], is_biased: bool, rms: float
) -> tuple[changes.Change, ...]:
    if is_biased:
        return tuple(changes.fill(name, 0.0) for name in biases)
    return tuple(changes.scale(name, 1 / rms) for name in weights) if 0 < rms < math.inf else ()


def forgetting(facts: Facts) -> Iterator[Verdict]:
    """A loop over time whose state keeps nothing of its first step, and learns nothing from it.

    Where the loss reads all steps, short memories learn too: then the gradient says so.
    """
    for memory in facts.memories():
        if memory.param is None:
            continue
        name, num = facts.anatomy.names[memory.param], memory.num_steps
        least = math.log(laws.LEAST_KEPT)
        is_lost = memory.log_gradient < least
        bias = memory.sign * laws.memory_bias(num)
        is_vector = len(facts.weights[name].shape) == 1 if name in facts.weights else False
        yield Verdict(
            "forgetting",
            name,
            math.exp(memory.log_kept),
            math.exp(-1),
            laws.LEAST_KEPT if is_lost else 0.0,
            math.inf,
            f"The state of the loop that it rules keeps {math.exp(memory.log_kept / num):.3g} of "
            f"itself a step at most, {math.exp(memory.log_kept):.1g} over {num} steps: what it "
            f"read first is rounded away. A memory of {num} steps has a bias of "
            f"{'log' if memory.sign > 0 else '-log'}({num} - 1).",
            (changes.fill(name, bias, memory.part),) if is_vector else (),
        )


def no_gradient(facts: Facts) -> Iterator[Verdict]:
    """A parameter at which no gradient arrives, though it does at its alike, or none ever will.

    One behind a zero (a last matrix, a gate) has none in the first step only: that zero moves. So
    where some have none, all that has a gradient is moved, and it is looked again.
    """
    zero = {n for n in facts.weights if facts.log_gradient(n) == -math.inf}
    still = _still(facts, zero)
    zeros = _zeros_for_ever(facts, still)
    yield from _product_of_zeros(facts, zeros)
    strange = [n for n in facts.weights if _is_strange(facts, n, zero, still) and n not in zeros]
    ends = _ends(facts, strange)
    for name in facts.weights:
        is_end = name in ends
        yield Verdict(
            "no gradient",
            name,
            float(is_end),
            0.0,
            0.0,
            0.0,
            _without(facts, name, ends.get(name, 0), len(zero)),
            _let_through(facts, name) if is_end and facts.is_used(name) else (),
        )


def _is_strange(facts: Facts, name: str, zero: set[str], still: set[str]) -> bool:
    """Whether a parameter should have a gradient, and has none.

    One that `stop_gradient` is told of, as all its alike are, is frozen on purpose; one that equals
    another which learns is its target (Mnih et al. 2015).
    """
    if name not in zero:
        return False
    weights = facts.weights[name]
    alike = next(names for names in facts.alike().values() if name in names)
    without = [n for n in alike if n in zero]
    if len(alike) >= 3 and len(without) <= len(alike) / 3:
        return True
    is_matrix = len(weights.shape) > 1 and min(weights.shape) > 1 and weights.std > 0
    if not facts.is_used(name):
        return is_matrix
    is_target = any(weights == facts.weights[n] for n in facts.weights if n not in zero)
    return is_matrix and name in still and not facts.is_frozen(name) and not is_target


def _ends(facts: Facts, strange: Sequence[str]) -> dict[str, int]:
    """Those behind which no other of them stands, with how many stand in front: where it stops."""
    program, first = facts.anatomy.program, facts.anatomy.first_param
    entry = {layer.name: layer.step for layer in facts.layers}
    used = [name for name in strange if facts.is_used(name)]
    reach = {n: set(operations.reached(program, first + facts.slices[n][0])) for n in used}
    starts = {n: entry.get(n, min(reach[n], default=-1)) for n in used}
    ends = {name: 0 for name in strange if not facts.is_used(name)}
    for name in used:
        behind = [o for o in used if starts[o] in reach[name] and starts[o] > starts[name]]
        if not behind:
            ends[name] = sum(starts[name] in reach[o] and o != name for o in used)
    return ends


def _without(facts: Facts, name: str, num_before: int, num_zero: int) -> str:
    if not facts.is_used(name):
        return "No gradient arrives at it: the loss does not use it."
    if num_zero == len(facts.weights):
        return "No parameter has a gradient: near them the loss is constant on this batch."
    others = f", nor at {num_before} parameters in front of it" if num_before else ""
    return f"No gradient arrives at it{others}, though the loss depends on it."


def _let_through(facts: Facts, name: str) -> tuple[changes.Change, ...]:
    """The first operation behind a parameter that stops gradients, let through."""
    program, value = facts.anatomy.program, facts.anatomy.first_param + facts.slices[name][0]
    found = next(operations.stopping(program, value), None)
    return () if found is None else (changes.straight_through(f"{found[1]}@{name}"),)


def _product_of_zeros(facts: Facts, zeros: set[str]) -> Iterator[Verdict]:
    """One verdict for each role of them, matrices first: these are what is drawn."""
    by_axes = sorted(zeros, key=lambda name: -len(facts.weights[name].shape))
    roles = dict.fromkeys(map(starred, by_axes))
    for role in roles:
        member = next(name for name in by_axes if starred(name) == role)
        others = ", ".join(other for other in roles if other != role)
        yield Verdict(
            "no gradient",
            role,
            1.0,
            0.0,
            0.0,
            0.0,
            "No gradient arrives at it, and none ever will: it is 0, and so is what it is "
            f"multiplied by{others and f' ({others})'}.",
            (changes.redraw(role, _fan_in(facts, member) ** -0.5),),
        )


def _still(facts: Facts, zero: set[str]) -> set[str]:
    """Parameters that the loss depends on and that have no gradient in the next step either."""
    used = {name for name in zero if facts.is_used(name)}
    if not used:
        return set()
    later = facts.later()
    return {name for name in used if facts.log_gradient(name, later) == -math.inf}


def _zeros_for_ever(facts: Facts, still: set[str]) -> set[str]:
    """Two or more that are 0 and stay so: the gradient of each is a product with another of them.

    Biases are not among them: behind a norm they have no gradient by right.
    """
    biases = {name for layer in facts.layers for name in facts.bias_names(layer)}
    found = {name for name in still - biases if facts.weights[name].largest == 0}
    return found if len(found) > 1 else set()


def _fan_in(facts: Facts, name: str) -> int:
    return next((layer.fan_in for layer in facts.layers if layer.name == name), 1)


def held_norm(facts: Facts) -> Iterator[Verdict]:
    """One layer that has most of the gradient of all its alike, out of line with its neighbours."""
    for names in facts.alike().values():
        is_long = len(names) >= laws.FEWEST_IN_LINE
        if not is_long or len(facts.weights[names[0]].shape) < 2:
            continue
        found = laws.held_norms([facts.log_gradient(name) for name in names], facts.z)
        for k, name in enumerate(names):
            share, excess = found.get(k, (1 / len(names), 1.0))
            yield Verdict(
                "held norm",
                name,
                share,
                1 / len(names),
                0.0,
                0.5,
                f"Its gradient is {excess:.3g} times what its neighbours' say: {share:.0%} of the "
                f"squared norm of {len(names)} alike layers ({starred(name)}). A clip by the norm "
                "is set by it alone.",
                (changes.multiply(name, 1 / excess),) if excess > 1 else (),
                again=True,
            )
