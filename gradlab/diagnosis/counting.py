"""How many numbers an audit holds against a law that has a sampling error: one sum, by check.

Of so many tests together the rate of false alarms is stated (`laws.FALSE_ALARMS`). What is exact (a
nan, equal units, a gradient of 0) and what is held against a convention (saturated, drowned, a
gate's slope, what is over time) has no chance in it and is not counted.
"""

from __future__ import annotations

from gradlab.diagnosis import checks_flow, checks_logits, checks_weights, laws
from gradlab.diagnosis.facts import Facts, chains


def num_tests(facts: Facts) -> int:
    """The number of tests of one audit."""
    counts = (_alike, _shapes, _gains, _flat, _softmaxes, _held)
    return sum(count(facts) for count in counts)


def _alike(facts: Facts) -> int:
    """One for each of three alike parameters or more, and for each matrix without any."""
    groups = [names for names in facts.alike().values() if len(names) >= 3]
    told = {name for names in groups for name in names}
    return len(told) + len(checks_weights.without_alike(facts, told))


def _shapes(facts: Facts) -> int:
    """One for each matrix among three alike or more."""
    return sum(
        len(names)
        for names in facts.alike().values()
        if len(names) >= 3 and len(facts.weights[names[0]].shape) > 1
    )


def _gains(facts: Facts) -> int:
    """One for each run of layers."""
    return len(chains(facts.anatomy))


def _flat(facts: Facts) -> int:
    """One for each activation."""
    return sum(checks_flow.has_units_to_lose(facts, k) for k in range(len(facts.layers)))


def _softmaxes(facts: Facts) -> int:
    """One for the attention of each role, one for each classifier."""
    return len(checks_logits.attention_roles(facts)) + len(checks_logits.classifiers(facts))


def _held(facts: Facts) -> int:
    """One for each matrix with two neighbours, among enough alike."""
    return sum(
        len(names) - 2
        for names in facts.alike().values()
        if len(names) >= laws.FEWEST_IN_LINE and len(facts.weights[names[0]].shape) > 1
    )
