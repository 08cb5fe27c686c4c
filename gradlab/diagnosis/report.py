"""An audit as text of 100 columns, as HTML for a notebook, and as a page."""

from __future__ import annotations

import fnmatch
import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradlab.diagnosis import laws
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.facts import Facts

if TYPE_CHECKING:
    from gradlab.diagnosis.examination import Finding

WIDTH = 100
_MOST_ALIKE = 4

_HEAD = ("layer", "law of weights", "σ_w", "phi", "input", "output", "gradient", "share", "flat")
_LEGEND = (
    "σ_w: √(inputs of a unit) times the weights' root mean square; phi: the activation; input, "
    "output: root mean squares before and behind the weights; gradient: norm of the loss's "
    "gradient by that output; share: of the squared gradient norm of all weights; flat: units that "
    "pass no gradient on this batch"
)
_WIDTHS = (30, 16, 6, 11, 8, 8, 9, 7, 5)


@dataclass(frozen=True)
class Row:
    """A layer in the table.

    Attributes:
        layer: its path.
        law: the law that its weights' standard deviation is one of, and their distribution.
        sigma_w: √fan_in times the root mean square of its weights.
        phi: its activation, '' for none, '?' for one without a name.
        input, output: root mean squares of its input and of its pre-activation.
        gradient: the norm of the gradient that arrives at the pre-activation.
        share: of its parameter's gradient in the squared norm of all.
        flat: the share of units without a slope.
    """

    layer: str
    law: str
    sigma_w: float
    phi: str
    input: float
    output: float
    gradient: float
    share: float
    flat: float

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows, by column."""
        numbers = (self.sigma_w, self.input, self.output, self.gradient)
        sigma_w, before, after, gradient = map(number, numbers)
        flat = "" if math.isnan(self.flat) or self.flat == 0 else f"{self.flat:.0%}"
        share = "" if math.isnan(self.share) else f"{self.share:.1%}"
        return self.layer, self.law, sigma_w, self.phi, before, after, gradient, share, flat


def rows(facts: Facts, show: str) -> list[Row]:
    """A row for each layer whose path fits the pattern `show`."""
    logs = [facts.log_gradient(name) for name in facts.weights]
    largest = max((x for x in logs if math.isfinite(x)), default=0.0)
    total = sum(math.exp(2 * (x - largest)) for x in logs if math.isfinite(x))

    def row(k: int) -> Row:
        layer = facts.layers[k]
        log = facts.log_gradient(layer.name)
        return Row(
            layer.name,
            _law(facts, k),
            facts.sigma_w(k),
            facts.phis[k],
            _exp(facts.of_layer("log_state", k)),
            _exp(facts.of_layer("log_pre", k)),
            _exp(facts.of_layer("log_gradient", k)),
            math.exp(2 * (log - largest)) / total if total and not math.isnan(log) else math.nan,
            facts.of_layer("flat", k),
        )

    return [row(k) for k, layer in enumerate(facts.layers) if fnmatch.fnmatch(layer.name, show)]


def _law(facts: Facts, k: int) -> str:
    layer, weights = facts.layers[k], facts.weights.get(facts.layers[k].name)
    if weights is None or not weights.finite:
        return "" if weights is None else "not finite"
    name = laws.named_draw(
        weights.std, weights.kurtosis, weights.size, (layer.fan_in, layer.fan_out), facts.z
    )
    return name or laws.shape_of(weights, facts.z)


def _exp(log: float) -> float:
    return math.exp(log) if log < 700 else math.inf


def number(x: float) -> str:
    """Three digits in at most seven characters."""
    if math.isnan(x) or math.isinf(x) or x == 0:
        return str(x).removesuffix(".0")
    return f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 else f"{x:.0e}"


# ---- text


def text(audit: Any) -> str:
    """The audit: findings first, then what is fine, then a table by layer."""
    return "\n".join([*_verdict(audit), "", *_fine(audit), "", *_table(audit)])


def counted(findings: Sequence[Finding]) -> str:
    """How many findings there are, in words."""
    num = len(findings)
    return "no finding" if not num else "1 finding" if num == 1 else f"{num} findings"


def _verdict(audit: Any) -> Iterator[str]:
    num = len(audit.layers)
    where = "1 layer" if num == 1 else f"{num} layers"
    yield f"{counted(audit.findings)} in {where}; loss {audit.loss:.4g}"
    for k, finding in enumerate(audit.findings, 1):
        yield ""
        yield from _finding(finding, k)
    yield from (f"left out: {what}" for what in audit.left_out)


def _finding(finding: Finding, k: int) -> Iterator[str]:
    yield from _wrapped(f"{k}. {finding.layer}: {finding.kind}", "   ")
    for sentence in _sentences(finding):
        yield from _wrapped(f"   {sentence}", "   ")


def _sentences(finding: Finding) -> Iterator[str]:
    """What is said of a finding below its name."""
    yield finding.cause
    low, high = finding.interval
    allowed = f"{number(low)} to {number(high)}"
    yield f"measured {number(finding.measured)}, allowed {allowed} ({finding.law})"
    remedy = finding.remedy
    if remedy is None:
        yield "no remedy: nothing that was tried helps"
    else:
        words = " and ".join(change.words for change in remedy.changes)
        yield f"remedy, measured: {remedy}: {words}"
        yield (
            f"with it: {number(remedy.before)} -> {number(remedy.after)}; on another batch "
            f"{number(remedy.before_other)} -> {number(remedy.after_other)}; loss "
            f"{number(remedy.loss_before)} -> {number(remedy.loss_after)}"
        )
    yield from (f"follows from it: {one.layer}: {one.kind}" for one in finding.follows[:6])
    if len(finding.follows) > 6:
        yield f"and {len(finding.follows) - 6} more"


def _wrapped(line: str, indent: str) -> list[str]:
    return textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _fine(audit: Any) -> Iterator[str]:
    for embedding in audit.embeddings:
        yield from _wrapped(f"rows of {embedding}", "      ")
    for sentence in audit.fine:
        yield from _wrapped(f"fine: {sentence}", "      ")
    rate = f"{laws.FALSE_ALARMS:.0%}"
    yield from _wrapped(
        f"Chance gives a healthy model a finding in at most {rate} of audits, all "
        f"{audit.num_tests} tests that it has a part in counted.",
        "      ",
    )


def _table(audit: Any) -> Iterator[str]:
    yield "".join(map(str.ljust, _HEAD, _WIDTHS)).rstrip()
    yield _line(tuple("-" * (width - 1) for width in _WIDTHS))
    named = {f.layer for f in audit.findings}
    alike: dict[str, list[Row]] = {}
    for row in audit.layers:
        alike.setdefault(starred(row.layer), []).append(row)
    left_out = 0
    for row in audit.layers:
        group = alike[starred(row.layer)]
        if (
            len(group) > _MOST_ALIKE
            and row.layer not in named
            and group.index(row) not in (0, len(group) - 1)
        ):
            left_out += 1
            continue
        yield _line(row.cells)
    if left_out:
        yield f"... and {left_out} layers like the ones shown; audit.layers has all of them"
    yield from _wrapped(_LEGEND, "")


def _line(cells: Sequence[str]) -> str:
    parts = [_cut(cell, width - 1).ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)]
    return "".join(parts).rstrip()


def _cut(cell: str, width: int) -> str:
    """A cell of at most so many characters: the end of a path says most."""
    return cell if len(cell) <= width else "…" + cell[-(width - 1) :]


def what_if(trial: Any) -> str:
    """A changed model beside the one that was audited."""
    lines = [
        ", ".join(map(str, trial.changes)),
        f"loss: {number(trial.loss_before)} -> {number(trial.loss_after)}",
    ]
    for kind, layer, before, after in trial.rows:
        lines += _wrapped(f"{layer}: {kind}: {number(before)} -> {number(after)}", "  ")
    return "\n".join(lines)


# ---- HTML


def fragment(audit: Any) -> str:
    """The audit as HTML: findings, what is fine, and the table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells) + "</tr>"
        for row in audit.layers
    )
    found = "".join(map(_finding_html, audit.findings))
    fine = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in audit.fine)
    title = html.escape(next(_verdict(audit)))
    left_out = "".join(f"<p>left out: {html.escape(what)}</p>" for what in audit.left_out)
    return (
        f"<h2>{title}</h2><ol>{found}</ol>{left_out}<h3>Checked and fine</h3><ul>{fine}</ul>"
        f"{_drawing(audit.layers)}<table><tr>{head}</tr>{body}</table>"
        f"<p><small>{html.escape(_LEGEND)}</small></p>"
    )


def _finding_html(finding: Finding) -> str:
    lines = map(html.escape, _sentences(finding))
    title = html.escape(f"{finding.layer}: {finding.kind}")
    return f"<li><b>{title}</b><br>{'<br>'.join(lines)}</li>"


def _drawing(layers: Sequence[Row]) -> str:
    """The gradient that arrives, layer by layer, on a log axis, as SVG."""
    logs = [math.log10(r.gradient) if 0 < r.gradient < math.inf else None for r in layers]
    known = [x for x in logs if x is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(*known, min(known) + 1)
    points = " ".join(
        f"{10 + 580 * k / max(len(logs) - 1, 1):.1f},{110 - 100 * (x - low) / (high - low):.1f}"
        for k, x in enumerate(logs)
        if x is not None
    )
    label = f"gradient that arrives, by layer: 1e{low:.1f} to 1e{max(known):.1f}"
    return (
        f'<figure><svg viewBox="0 0 600 120" role="img" aria-label="{label}" width="600">'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def page(audit: Any) -> str:
    """The audit as a page that needs neither server nor network."""
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
        "color-scheme:light dark}table{border-collapse:collapse;font-size:.85rem}"
        "td,th{padding:.15rem .6rem;text-align:left;border-bottom:1px solid #8884}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>gradlab audit</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{style}</style><main><h1>Audit</h1>{fragment(audit)}</main></html>\n"
    )
