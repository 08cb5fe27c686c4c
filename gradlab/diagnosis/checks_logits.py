"""Checks of what goes into a softmax: attention that is frozen, a classifier that is too sure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from gradlab.diagnosis import changes, laws
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.facts import Facts
from gradlab.diagnosis.verdicts import Verdict


def attention_logits(facts: Facts) -> Iterator[Verdict]:
    """Attention that rests on one state, by role."""
    numbers = facts.measured.softmaxes
    for roles, members in attention_roles(facts).items():
        loads = [float(numbers["load"][k]) for k in members]
        std = float(np.sqrt(np.mean(np.square([numbers["std"][k] for k in members]))))
        length = int(max(numbers["length"][k] for k in members))
        critical = float(max(numbers["critical"][k] for k in members))
        rows = float(min(numbers["rows"][k] for k in members))
        frozen = sum(laws.saturation(load) > 1 for load in loads)
        yield Verdict(
            "attention logits",
            roles[0],
            laws.saturation(float(np.mean(loads))),
            1 / critical,
            0.0,
            1 + facts.z * math.sqrt(1 / (2 * max(rows, 1.0))),
            f"Attention is frozen in {frozen} of {len(members)}: logits have a standard deviation "
            f"of {std:.3g}, above √(2 log {length}), so that softmax rests on one entry and passes "
            "hardly any gradient.",
            tuple(changes.scale(role, (1 / std) ** (1 / max(len(roles), 2))) for role in roles)
            if 0 < std < math.inf
            else (),
        )


def attention_roles(facts: Facts) -> dict[tuple[str, ...], list[int]]:
    """The softmaxes that weigh states, by the roles of the layers that make their logits."""
    by_role: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for k, softmax in enumerate(facts.anatomy.softmaxes):
        if softmax.use == "attention" and softmax.layers:
            found = dict.fromkeys(starred(facts.layers[i].name) for i in softmax.layers)
            by_role[tuple(found)].append(k)
    return by_role


def classifiers(facts: Facts) -> list[int]:
    """The softmaxes whose log is taken, of what layers make."""
    pairs = enumerate(facts.anatomy.softmaxes)
    return [k for k, softmax in pairs if softmax.use == "classifier" and softmax.layers]


def output_logits(facts: Facts) -> Iterator[Verdict]:
    """A classifier that is sure of what it does not know."""
    numbers = facts.measured.softmaxes
    for k in classifiers(facts):
        softmax = facts.anatomy.softmaxes[k]
        load, std = laws.saturation(float(numbers["load"][k])), float(numbers["std"][k])
        length = int(numbers["length"][k])
        guess = math.log(max(length, 2))
        names = list(dict.fromkeys(facts.layers[i].name for i in softmax.layers))
        # Logits of like examples are alike: what was drawn is n - 1 differences, not more by rows.
        # The length of what the head reads is a matter of chance too.
        spare = math.exp(facts.z * max(_length_error(facts, i) for i in softmax.layers) / 2)
        yield Verdict(
            "output logits",
            names[0],
            load if facts.measured.loss > guess else min(load, 1.0),
            1 / float(numbers["critical"][k]),
            0.0,
            (1 + facts.z * math.sqrt(1 / (2 * max(length - 1, 1)))) * spare,
            f"Logits have a standard deviation of {std:.3g}, above √(2 log {length}): the loss is "
            f"{facts.measured.loss:.3g}, a blind guess has {guess:.3g}.",
            tuple(changes.scale(name, 1 / std) for name in names) if 0 < std < math.inf else (),
        )


def rectified_logits(facts: Facts) -> Iterator[Verdict]:
    """Logits behind an activation, whose gradient is lost where that has no slope."""
    for k, one in enumerate(facts.anatomy.rectified):
        name, share = one.activated.name, float(facts.measured.rectified["still"][k])
        yield Verdict(
            "rectified logits",
            name,
            share,
            0.0,
            0.0,
            0.0,
            f"An activation stands between it and the loss: {share:.0%} of its logits have no "
            "slope there, and get no gradient whatever the label is.",
            (changes.without_activation(name),),
        )


def _length_error(facts: Facts, k: int) -> float:
    """The standard deviation of the log mean square of what layer k reads, over draws of weights.

    Of the layers in front of it that have nothing but activations between; a norm ends them.
    """
    feeds = {after: before for before, after in facts.anatomy.links}
    run = [k]
    while run[-1] in feeds:
        run.append(feeds[run[-1]])
    drawn = run[:-1]  # what the first one reads was not made by weights
    spreads = [facts.of_layer("state_spread", i) for i in drawn]
    return laws.gain_error(spreads, [facts.layers[i].fan_in for i in drawn])
