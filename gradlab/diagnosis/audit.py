"""The audit of a model: which layer, how bad, against which law, why, and what helps.

`print(gl.audit(model, batch, loss))`. The loss is traced once for each structure; the model is then
measured by one compiled pass, as often as remedies need it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import jax

from gradlab.diagnosis import (
    anatomy,
    changes,
    counting,
    door,
    embeddings,
    entries,
    exact,
    examination,
    exceptional,
    laws,
    measures,
    memory,
    operations,
    planning,
    record,
    report,
    singular,
)
from gradlab.diagnosis.changes import Change
from gradlab.diagnosis.examination import Finding
from gradlab.diagnosis.facts import Facts
from gradlab.diagnosis.planning import Prepared
from gradlab.diagnosis.verdicts import KINDS, Verdict
from gradlab.errors import BadInput


@dataclass(frozen=True)
class WhatIf:
    """A changed model beside the one that was audited: verdicts before and after."""

    changes: tuple[Change, ...]
    loss_before: float
    loss_after: float
    rows: tuple[tuple[str, str, float, float], ...]

    def __str__(self) -> str:
        return report.what_if(self)


class Audit:
    """What `gl.audit` found. Printed, it is a table; the last expression of a cell shows it.

    Attributes:
        findings: causes first, each with what follows from it and the remedy that was measured.
        fine: a sentence for each thing that was checked and is as it should be.
        left_out: what could not be looked at.
        loss: of the given batch.
        layers: a row for each layer.
    """

    def __init__(
        self,
        subject: door.Subject,
        plan_of: Callable[[list[Any]], Prepared],
        batches: Sequence[Any],
        show: str,
        limit: float,
    ) -> None:
        self._subject, self._plan_of, self._batches = subject, plan_of, batches
        plan = self._plan = plan_of(batches[0])
        self._facts: dict[tuple[tuple[Change, ...], int], Facts] = {}
        start = time.monotonic()
        self._verdicts = examination.verdicts(self.facts, lambda: self._first_bad(()))
        self.findings: list[Finding] = list(
            examination.examined(
                self._facts_of, self._first_bad, lambda: time.monotonic() - start > limit
            )
        )
        late = [f.layer for f in self.findings if time.monotonic() - start > limit and not f.remedy]
        self.left_out = list(dict.fromkeys(plan.anatomy.program.closed))
        if num_complex := door.num_complex(subject):
            self.left_out.append(f"{num_complex} complex arrays, which are not differentiated")
        if late:
            self.left_out.append(
                f"remedies after {limit:g} seconds: {len(late)} findings have none"
            )
        self._show = show

    @cached_property
    def facts(self) -> Facts:
        """All numbers that the checks read."""
        return self._facts_of((), 0)

    @property
    def loss(self) -> float:
        """The loss of the given batch."""
        return self.facts.measured.loss

    @property
    def num_tests(self) -> int:
        """How many numbers with a sampling error were held against their laws."""
        return counting.num_tests(self.facts)

    @property
    def fine(self) -> list[str]:
        """What was checked and is as it should be, a sentence for each kind of check."""
        counts = {
            kind: sum(v.kind == kind for v in self._verdicts)
            for kind in KINDS
            if not any(v.kind == kind and v.flagged for v in self._verdicts)
        }
        return [f"{KINDS[k].fine} ({n})" for k, n in counts.items() if n]

    @cached_property
    def embeddings(self) -> list[embeddings.Embedding]:
        """The parameters that are looked up, with the gradient of each row."""
        return embeddings.embeddings(self.facts)

    @cached_property
    def layers(self) -> list[report.Row]:
        """A row for each layer, in the order of the program."""
        return report.rows(self.facts, self._show)

    def what_if(self, *change: Change) -> WhatIf:
        """The changed model measured again, on the same batch: before and after."""
        after = self._facts_of(change, 0)
        found = {v.key: v for v in examination.verdicts(after, lambda: self._first_bad(change))}
        rows = tuple(
            (v.kind, v.layer, v.measured, found[v.key].measured)
            for v in self._verdicts
            if v.key in found and (v.flagged or found[v.key].flagged)
        )
        return WhatIf(change, self.loss, after.measured.loss, rows)

    def top_singular_values(
        self, k: int = 1, since: str | None = None, until: str | None = None
    ) -> singular.Singular:
        """The k largest singular values of the Jacobian from one layer's output to another's.

        From the first layer to the last one if none is named; matrix-free, with an error bound.
        """
        return singular.top(self._plan.anatomy, self._inputs((), 0), k, since, until)

    def singular_values(
        self, k: int = 4, since: str | None = None, until: str | None = None, example: int = 0
    ) -> exact.SingularValues:
        """All singular values of one example's Jacobian, exactly; the k largest matrix-free beside.

        The example is a batch of its own. For states of at most `exact.MOST_WIDTH` numbers.
        """
        exact.check_alone(self._plan.anatomy, self._inputs((), 0), since, until, example)
        batch = exact.alone(self._batches[0], example)
        plan = self._plan_of(batch)
        inputs = self._given((), plan, batch)
        return exact.singular_values(plan.anatomy, inputs, k, since, until)

    def save(self, path: str | Path) -> Path:
        """Write the audit as JSON (`gradlab/diagnosis/audit.schema.json`) or as an HTML page."""
        path = Path(path)
        text = report.page(self) if path.suffix in {".html", ".htm"} else record.text(self)
        path.write_text(text)
        return path

    def compare(self, path: str | Path) -> record.Comparison:
        """This audit beside a saved one: what is new, gone or worse; `.exit_code` for CI."""
        return record.compared(self, path)

    def __str__(self) -> str:
        return report.text(self)

    def __repr__(self) -> str:
        num = len(self._plan.anatomy.layers)
        return f"<audit of {num} layers: {report.counted(self.findings)}>"

    def _repr_html_(self) -> str:
        return report.fragment(self)

    # ---- measuring

    def _params(self, change: Sequence[Change]) -> tuple[Any, ...]:
        return changes.applied(change, self._plan.slices, self._subject.params)

    def _inputs(self, change: Sequence[Change], batch: int) -> list[Any]:
        return self._given(change, self._plan, self._batches[batch])

    def _given(self, change: Sequence[Change], plan: Prepared, arrays: Sequence[Any]) -> list[Any]:
        given = (*self._params(change), *self._subject.rest, *arrays)
        return [*plan.anatomy.program.constants, *map(_of_one_type, given)]

    def _facts_of(self, change: Sequence[Change], batch: int) -> Facts:
        key = tuple(change), batch
        if key not in self._facts:
            plan = self._plan
            measure = plan.measure(tuple(c for c in change if c.of_program))
            measured = measure(self._inputs(change, batch), changes.loss_factor(change))
            known = Facts(
                anatomy.with_program(plan.anatomy, plan.program(change)),
                plan.slices,
                self._weights(change),
                plan.phis,
                measured,
                math.nan,
                cache(lambda: self._moved(change, batch, measured, measure)),
                cache(
                    lambda: exceptional.at_the_edge(plan.program(change), self._inputs(change, 0))
                ),
                cache(lambda: self._memories(change, batch)),
            )
            is_given = key == ((), 0)
            z = laws.quantile(counting.num_tests(known)) if is_given else self.facts.z
            self._facts[key] = replace(known, z=z)
        return self._facts[key]

    def _memories(self, change: Sequence[Change], batch: int) -> list[memory.Memory]:
        recall = self._plan.recall()
        return [] if recall is None else recall(self._inputs(change, batch))

    def _moved(
        self,
        change: Sequence[Change],
        batch: int,
        now: measures.Measured,
        measure: Callable[..., measures.Measured],
    ) -> measures.Measured:
        """The numbers of a pass after all that has a gradient has moved a little.

        As often as that gives more of them one: behind two zeros, the second moves in the second
        step.
        """
        inputs = self._inputs(change, batch)
        first = self._plan.anatomy.first_param
        while True:
            for k, log in enumerate(now.params["log_gradient"]):
                if log > -math.inf:
                    inputs[first + k] = changes.moved(inputs[first + k], seed=k)
            before, now = now, measure(inputs, changes.loss_factor(change))
            if now.num_silent >= before.num_silent:
                return now

    def _weights(self, change: Sequence[Change]) -> dict[str, entries.Weights]:
        slices, params = self._plan.slices, self._params(change)
        stacked = {number for number, index in slices.values() if index is not None}
        names = [n for n, (number, i) in slices.items() if i is not None or number not in stacked]
        if not change:
            return {name: entries.weights(_part(params, *slices[name])) for name in names}
        known = dict(self._facts_of((), 0).weights)
        fits = [c.pattern for c in change if c.call != "scale_loss" and not c.of_program]
        touched = {slices[n][0] for p in fits for n in changes.fitting(p, slices)}
        again = [name for name in names if slices[name][0] in touched]
        return known | {name: entries.weights(_part(params, *slices[name])) for name in again}

    def _first_bad(self, change: Sequence[Change]) -> Verdict | None:
        plan = self._plan
        program, inputs = plan.program(change), self._inputs(change, 0)
        step = exceptional.first_not_finite(program, inputs)
        if step is None:
            return None
        made = program.steps[step]
        unsafe = {made.name, *exceptional.at_the_edge(program, inputs)} & set(operations.GUARDED)
        before = [layer.name for layer in plan.anatomy.layers if layer.step <= step]
        layer = before[-1] if before else "the input"
        return Verdict(
            "not finite",
            layer,
            1.0,
            0.0,
            0.0,
            0.0,
            f"The first nan or inf comes out of `{made.name}`, "
            + (
                "at this layer."
                if before and plan.anatomy.layers[len(before) - 1].step == step
                else "behind this layer."
            ),
            tuple(changes.guard(name) for name in sorted(unsafe)),
        )


def audit(
    model: Any,
    batch: Any,
    loss: door.Loss,
    *,
    other: Any = None,
    layers: str = "*",
    seconds: float = math.inf,
) -> Audit:
    """The audit of a model.

    Args:
        model: an Equinox or Flax NNX module, `(params, function)` with `function(params, ...)`, a
            list of callables, a `gl.chain.Chain`, or any pytree that `loss` knows what to do with.
        batch: a pytree of arrays, as the loss takes it.
        loss: `loss(model, batch)`: a number, or a tuple that starts with one.
        other: another batch of the same shapes, on which remedies must help as well; if it is not
            given, the entries of the first one, permuted.
        layers: which layers the table shows, as a shell's pattern: `blocks.*`.
        seconds: after so many, no further remedy is tried.

    Raises:
        BadInput: for a loss that is not a number, an empty batch or one of other shapes, a model
            without parameters, or `layers` that fit none.
    """
    door.check(model, loss)
    subject = door.opened(model)
    num_complex = door.num_complex(subject)
    if not subject.params:
        raise BadInput(
            f"All {num_complex} arrays of the model are complex; give the real and the imaginary "
            "part of each as two parameters."
            if num_complex
            else f"A {type(model).__name__} holds no array of floating point numbers to audit; "
            "give a module, (params, function), a list of layers or a gl.chain.Chain."
        )
    leaves, treedef = jax.tree_util.tree_flatten(batch)
    arrays = [planning.as_array(leaf) for leaf in leaves]
    planning.check_batch(arrays)
    others = planning.other_batch(other, treedef, arrays)
    plan_of = partial(planning.planned, subject, treedef, loss)
    found = Audit(subject, plan_of, (arrays, others), layers, seconds)
    if layers != "*" and not found.layers:
        raise BadInput(f'layers="{layers}" fits none of {len(found.facts.layers)} layers.')
    return found


def _of_one_type(leaf: Any) -> Any:
    """An array that is not of a weak type: the program has been traced, and is compiled once."""
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


def _part(params: Sequence[Any], number: int, index: int | None) -> Any:
    return params[number] if index is None else params[number][index]
