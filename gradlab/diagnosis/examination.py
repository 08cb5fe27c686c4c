"""From facts to findings: every check, in the order of causes, and each remedy measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from gradlab.diagnosis import (
    checks_flow,
    checks_learning,
    checks_logits,
    checks_streams,
    checks_weights,
    laws,
)
from gradlab.diagnosis.changes import Change
from gradlab.diagnosis.facts import Facts
from gradlab.diagnosis.verdicts import KINDS, Verdict

_OF_WEIGHTS = (
    checks_weights.finite_weights,
    checks_weights.copies,
    checks_weights.same_entries,
    checks_weights.alike,
    checks_weights.shape,
    checks_weights.scaled_matrix,
)
_OF_FLOW = (
    checks_weights.equal_rows,
    checks_flow.gain,
    checks_flow.gain_over_time,
    checks_flow.flat,
    checks_flow.saturated,
    checks_flow.drowned,
    checks_learning.gates,
    checks_learning.forgetting,
    checks_streams.broken,
    checks_streams.doubled,
    checks_flow.norm_place,
    checks_streams.depth_scaling,
    checks_logits.attention_logits,
    checks_logits.output_logits,
    checks_logits.rectified_logits,
    checks_learning.no_gradient,
    checks_flow.gradient_jump,
    checks_learning.held_norm,
    checks_flow.formats,
)
_ORDER = {name: k for k, name in enumerate(KINDS)}
_MOST_CAUSES, _MOST_TRIALS = 5, 8

# `facts_of(changes, batch)`: facts of the changed model on the given batch (0) or another (1).
FactsOf = Callable[[Sequence[Change], int], Facts]
# `first_bad(changes)`: where the first number that is not finite comes from, or None.
FirstBad = Callable[[Sequence[Change]], Verdict | None]


@dataclass(frozen=True)
class Remedy:
    """A change that was measured to help, on the given batch and on another.

    Attributes:
        changes: what is done; `audit.what_if(*changes)` measures it again.
        before, after: the finding's number, on the given batch.
        before_other, after_other: the same on another batch.
        loss_before, loss_after: on the given batch.
    """

    changes: tuple[Change, ...]
    before: float
    after: float
    before_other: float
    after_other: float
    loss_before: float
    loss_after: float

    def __str__(self) -> str:
        return ", ".join(map(str, self.changes))


@dataclass(frozen=True)
class Finding:
    """A number that no law explains, what it comes from, and what was measured to help.

    Attributes:
        kind: which check.
        layer: its path, or a role with stars.
        measured, expected: the number, and what the law says.
        interval: what the law and chance allow.
        law: in words, with its source.
        cause: a sentence.
        remedy: None where nothing that was tried helped.
        follows: findings that vanish with the remedy.
    """

    kind: str
    layer: str
    measured: float
    expected: float
    interval: tuple[float, float]
    law: str
    cause: str
    remedy: Remedy | None
    follows: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        help_by = f" Remedy: {self.remedy}." if self.remedy else ""
        return f"{self.layer}: {self.cause}{help_by}"


def verdicts(facts: Facts, first_bad: Callable[[], Verdict | None]) -> list[Verdict]:
    """Every number held against its law, in the order of causes, each about one thing once."""
    found = [v for check in _OF_WEIGHTS for v in check(facts)]
    if not any(v.kind == "not finite" and v.flagged for v in found):
        # A weight that is not finite is what states and gradients have it from.
        bad = None if math.isfinite(facts.measured.loss) else first_bad()
        found += checks_flow.finite_gradients(facts) if bad is None else [bad]
    if not any(v.kind == "not finite" and v.flagged for v in found):
        found += [v for check in _OF_FLOW for v in check(facts)]
    unique: dict[tuple[str, str], Verdict] = {}
    for verdict in found:
        known = unique.get(verdict.key)
        if known is None or verdict.distance > known.distance:
            unique[verdict.key] = verdict
    return sorted(unique.values(), key=_precedence)


def _precedence(verdict: Verdict) -> int:
    return _ORDER[verdict.kind]


def examined(
    facts_of: FactsOf, first_bad: FirstBad, is_late: Callable[[], bool]
) -> Iterator[Finding]:
    """The findings: causes first, each with those that vanish when it is remedied."""
    done: list[Change] = []
    deferred: list[Verdict] = []
    kinds = set[str]()
    facts = facts_of((), 0)
    left = [v for v in verdicts(facts, lambda: first_bad(())) if v.flagged]
    told: set[tuple[str, str]] = set()
    for count in range(len(left)):
        open_ = [v for v in left if v.key not in told]
        if not open_:
            break
        cause = open_[0]
        told.add(cause.key)
        kinds.add(cause.kind)
        tried = None
        if cause.changes and count < _MOST_CAUSES and not is_late():
            tried = _tried(cause, tuple(done), facts_of, first_bad)
        if tried is None and cause.kind == "format":
            # Underflow is what a larger loss mends; a gradient that is 0 for another reason is not.
            deferred.append(cause)
            continue
        if tried is None:
            yield _finding(cause, None, ())
            continue
        remedy, after = tried
        done += remedy.changes
        gone = [v for v in open_[1:] if v.key not in {a.key for a in after if a.flagged}]
        told |= {v.key for v in gone}
        yield _finding(cause, remedy, tuple(_finding(v, None, ()) for v in gone))
        left = [v for v in after if v.flagged]
        if not left:
            break
    still = {v.key for v in left} if "no gradient" not in kinds else set()
    yield from (_finding(verdict, None, ()) for verdict in deferred if verdict.key in still)


def _finding(verdict: Verdict, remedy: Remedy | None, follows: tuple[Finding, ...]) -> Finding:
    return Finding(
        verdict.kind,
        verdict.layer,
        verdict.measured,
        verdict.expected,
        (verdict.low, verdict.high),
        KINDS[verdict.kind].law,
        verdict.cause,
        remedy,
        follows,
    )


def _tried(
    cause: Verdict, done: tuple[Change, ...], facts_of: FactsOf, first_bad: FirstBad
) -> tuple[Remedy, list[Verdict]] | None:
    """The remedy with the verdicts under it, or None unless it helps on both batches."""
    before_facts = facts_of(done, 0)
    trials: list[tuple[float, tuple[Change, ...], Facts, list[Verdict]]] = []
    factor = 1.0
    for _ in range(_MOST_TRIALS if cause.tune or cause.again else 1):
        trial = tuple(replace(c, value=c.value * factor) for c in cause.changes)
        facts = facts_of((*done, *trial), 0)
        after = verdicts(facts, partial(first_bad, (*done, *trial)))
        now = _same(cause, after)
        trials.append((now.distance if now else 0.0, trial, facts, after))
        factor = _next_factor(cause, trials)
        if factor == 0:
            break
    _, trial, facts, after = min(trials, key=lambda one: (one[0], _miss(cause, one[3])))
    now = _same(cause, after)
    others = [
        _same(cause, verdicts(facts_of(changes, 1), lambda: None))
        for changes in (done, (*done, *trial))
    ]
    before_other, after_other = ((v or cause) for v in others)
    value = now.measured if now is not None else cause.expected
    remedy = Remedy(
        trial,
        cause.measured,
        value,
        before_other.measured,
        after_other.measured if others[1] is not None else cause.expected,
        before_facts.measured.loss,
        facts.measured.loss,
    )
    helps = now is None or now.distance < (1 - laws.SAME) * cause.distance
    helps_other = (
        others[0] is None
        or others[1] is None
        or (others[1].distance < others[0].distance or others[0].distance == 0)
    )
    return (remedy, after) if helps and helps_other else None


def _miss(cause: Verdict, found: Sequence[Verdict]) -> float:
    """How far a finding's number is from what is expected of it, in nats."""
    now = _same(cause, found)
    if now is None or not now.measured > 0:
        return math.inf
    return abs(math.log(now.measured / cause.expected)) if cause.expected > 0 else now.measured


def _next_factor(
    cause: Verdict, trials: Sequence[tuple[float, tuple[Change, ...], Facts, list[Verdict]]]
) -> float:
    """What to multiply the first trial's factors by, by the secant rule in logs; 0 for no more."""
    if cause.again:
        now = _same(cause, trials[-1][3])
        is_in = now is None or not now.flagged
        return 0.0 if is_in else cause.changes[0].value ** len(trials)
    points = [(-math.log(cause.changes[0].value), math.log(cause.measured))] if cause.tune else []
    for _, trial, _, after in trials:
        now = _same(cause, after)
        if not cause.tune or now is None or not 0 < now.measured < math.inf:
            return 0.0
        points.append((math.log(trial[0].value / cause.changes[0].value), math.log(now.measured)))
    (x0, y0), (x1, y1) = points[-2:]
    if abs(y1) < 1e-2 or y1 == y0:
        return 0.0
    below = max((p for p in points if p[1] <= 0), key=lambda p: p[1], default=None)
    above = min((p for p in points if p[1] > 0), key=lambda p: p[1], default=None)
    if below and above:  # bracketed: the secant cannot leave it
        (x0, y0), (x1, y1) = below, above
    return math.exp(x1 - y1 * (x1 - x0) / (y1 - y0))


def _same(cause: Verdict, found: Sequence[Verdict]) -> Verdict | None:
    return next((v for v in found if v.key == cause.key), None)
