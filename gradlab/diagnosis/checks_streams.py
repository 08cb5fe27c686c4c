"""Checks of residual streams that are wired wrongly, whatever the weights are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gradlab.diagnosis import changes, rewiring
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.facts import Facts, streams
from gradlab.diagnosis.verdicts import Verdict
from gradlab.theory import meanfield


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
