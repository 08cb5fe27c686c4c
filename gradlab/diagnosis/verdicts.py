"""One number held against its law: what was measured, what is expected, and what chance allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradlab.diagnosis.changes import Change


@dataclass(frozen=True)
class Kind:
    """What a check is about: `about` names it, `fine` says in one line that all is well."""

    name: str
    fine: str
    law: str


# In the order of causes: what stands before may be the reason for what stands below.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("not finite", "every weight, state and gradient is finite", "IEEE 754"),
        Kind("copies", "no layer's units are copies of one another", "symmetry"),
        Kind("alike", "each layer is initialised as its alike are", "one law for one role"),
        Kind(
            "shape",
            "each layer's entries are distributed as its alike's are",
            "one law for one role: kurtosis 3, 1.8 or 2.37 (normal, uniform, truncated at 2 sigma)",
        ),
        Kind(
            "scaled matrix",
            "the matrix that depth scaling is for has it",
            "1/√(number of branches) on each branch's last matrix: Radford et al. 2019",
        ),
        Kind(
            "gain",
            "weights have the right size for their activation",
            "over all layers a gradient changes e³ = 20 times at most: Schoenholz et al. 2017",
        ),
        Kind(
            "flat",
            "no layer has more units without a slope than chance gives",
            "half of them: a binomial distribution",
        ),
        Kind(
            "saturated",
            "no activation is saturated",
            "mean phi'² over its maximum >= 1/10: a convention",
        ),
        Kind(
            "drowned",
            "no parameter drowns the state that it is added to",
            "a hundredth of the mean square depends on the input: a convention",
        ),
        Kind(
            "gate",
            "every gate can learn",
            "a memory of T steps needs a slope of 1/T: Tallec and Ollivier 2018; T <= 10^4: a "
            "convention",
        ),
        Kind(
            "forgetting",
            "each loop's state outlasts its steps, or need not",
            "the product of what a step keeps is above 2^-24: Tallec and Ollivier 2018",
        ),
        Kind(
            "attention logits",
            "attention is not frozen: logits lie below √(2 log length)",
            "Derrida 1981",
        ),
        Kind(
            "broken stream",
            "each block passes its stream on as its alike do",
            "one sum x + f(x) for each of alike blocks, with a gradient of 1 through x: He et al. "
            "2016",
        ),
        Kind(
            "doubled stream",
            "each residual sum adds its stream once",
            "|log of a stream's factor over all sums| <= 3: x + f(x), He et al. 2016",
        ),
        Kind(
            "norm place",
            "normalisation leaves the residual stream's gradient as it is",
            "|log of the gradient's ratio| <= 3: six depth scales of its square",
        ),
        Kind(
            "depth scaling",
            "residual streams grow no more than depth scaling allows",
            "branches over √(their number): Radford et al. 2019",
        ),
        Kind(
            "output logits",
            "the classifier's logits lie below √(2 log classes), or the loss below a guess's",
            "Derrida 1981",
        ),
        Kind(
            "rectified logits",
            "no activation stands on a classifier's logits",
            "the loss's derivative by each logit, p - y, is nowhere 0",
        ),
        Kind(
            "format", "no gradient leaves the range of its format", "smallest number of the format"
        ),
        Kind("no gradient", "a gradient arrives at each parameter", "chain rule"),
        Kind(
            "gradient",
            "alike layers get gradients of one size",
            "|log of their ratio| <= 6: twice six depth scales of the norm",
        ),
        Kind(
            "held norm",
            "no layer holds the norm of its alike's gradient alone",
            "studentised changes of the log norm from layer to layer: Grubbs 1950",
        ),
    )
}


@dataclass(frozen=True)
class Verdict:
    """One number held against its law; flagged where it lies outside `[low, high]`.

    Attributes:
        kind: a name in `KINDS`.
        layer: what it is about, by path, or a role with stars.
        measured, expected, low, high: the number, what a law says, and what chance allows.
        cause: a sentence.
        changes: what may help.
        tune: whether the factor of a scaling is to be set by measuring.
        again: whether the change is to be made as often as the number stays outside.
    """

    kind: str
    layer: str
    measured: float
    expected: float
    low: float
    high: float
    cause: str
    changes: tuple[Change, ...] = ()
    tune: bool = False
    again: bool = False

    @property
    def key(self) -> tuple[str, str]:
        """What a verdict is about."""
        return self.kind, self.layer

    @property
    def flagged(self) -> bool:
        """Whether chance does not explain the number."""
        return not self.low <= self.measured <= self.high

    @property
    def distance(self) -> float:
        """How far off: nats outside the interval, or the plain difference; inf for nan."""
        if not self.flagged:
            return 0.0
        if math.isnan(self.measured):
            return math.inf
        bound = self.low if self.measured < self.low else self.high
        if self.measured > 0 and bound > 0:
            return abs(math.log(self.measured / bound))
        return abs(self.measured - bound)
