"""An audit as JSON, and two audits compared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput

if TYPE_CHECKING:
    from gradlab.diagnosis.changes import Change
    from gradlab.diagnosis.examination import Finding

VERSION = 1


def schema() -> dict[str, Any]:
    """The JSON schema that a saved audit keeps."""
    return json.loads((files("gradlab.diagnosis") / "audit.schema.json").read_text())


def text(audit: Any) -> str:
    """The audit as JSON; a number that is not finite is a string, which no reader takes for one."""
    content = {
        "version": VERSION,
        "loss": _number(audit.loss),
        "findings": [_finding(finding) for finding in audit.findings],
        "fine": audit.fine,
        "left_out": audit.left_out,
        "layers": [
            {key: _number(value) for key, value in vars(row).items()} for row in audit.layers
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _finding(finding: Finding) -> dict[str, Any]:
    remedy = finding.remedy
    return {
        "kind": finding.kind,
        "layer": finding.layer,
        "measured": _number(finding.measured),
        "expected": _number(finding.expected),
        "interval": [_number(x) for x in finding.interval],
        "law": finding.law,
        "cause": finding.cause,
        "remedy": None
        if remedy is None
        else {
            "changes": [_given(change) for change in remedy.changes],
            **{k: _number(v) for k, v in vars(remedy).items() if k != "changes"},
        },
        "follows": [_finding(other) for other in finding.follows],
    }


def _number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@dataclass(frozen=True)
class Comparison:
    """Two audits: what is new since the saved one, and what is gone.

    Attributes:
        new, gone: findings as (kind, layer).
        changed: layers whose gradient is more than 10 times larger or smaller, with both norms.
    """

    new: tuple[tuple[str, str], ...]
    gone: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, float, float], ...]

    @property
    def exit_code(self) -> int:
        """0 unless there is a new finding, or a layer's gradient has changed."""
        return int(bool(self.new or self.changed))

    def __str__(self) -> str:
        lines = [f"new: {layer}: {kind}" for kind, layer in self.new]
        lines += [f"gone: {layer}: {kind}" for kind, layer in self.gone]
        lines += [f"gradient at {n}: {a:.3g} -> {b:.3g}" for n, a, b in self.changed]
        return "\n".join(lines) or "nothing new"


def compared(audit: Any, path: str | Path) -> Comparison:
    """An audit beside a saved one."""
    saved = read(path)
    before = {(f["kind"], f["layer"]) for f in _all(saved["findings"])}
    now = {(f["kind"], f["layer"]) for f in _all([_finding(f) for f in audit.findings])}
    gradients = {row["layer"]: float(row["gradient"]) for row in saved["layers"]}
    changed = tuple(
        (row.layer, gradients[row.layer], row.gradient)
        for row in audit.layers
        if row.layer in gradients and not _near(gradients[row.layer], row.gradient)
    )
    return Comparison(tuple(sorted(now - before)), tuple(sorted(before - now)), changed)


def read(path: str | Path) -> Mapping[str, Any]:
    """A saved audit."""
    try:
        saved = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a saved audit: {error}.") from None
    if not isinstance(saved, dict) or saved.get("version") != VERSION:
        raise BadInput(f"{path} is not an audit of version {VERSION}; save it anew.")
    return saved


def _all(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [f for one in findings for f in (one, *_all(one["follows"]))]


def _near(one: float, other: float) -> bool:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return True
    return one > 0 and other > 0 and abs(math.log(one / other)) < math.log(10)


def _given(change: Change) -> dict[str, Any]:
    """What a change says; of no part, nothing."""
    said = vars(change) | {"part": list(change.part or ())}
    return {key: value for key, value in said.items() if key != "part" or value}
