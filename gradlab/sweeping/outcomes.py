"""What a run left, as Python shows it: its data, claims and figure, and what two runs differ in."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import fileset
from gradlab.experiment.loading import Experiment

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from gradlab.experiment.claim import Claim
    from gradlab.experiment.figures import Figure
    from gradlab.experiment.headline import Headline


class Claims(tuple["Claim", ...]):
    """The claims of a run; a table where it is shown, in a terminal and in a notebook."""

    @property
    def hold(self) -> bool:
        """Whether all of them do."""
        return all(claim.holds for claim in self)

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                "holds" if claim.holds else "FAILS",
                claim.sentence,
                f"{claim.measured:.6g} {claim.relation} {claim.expected:.6g}",
                f"± {sum(claim.tolerance.values()):.2g}",
                claim.at,
            )
            for claim in self
        ]

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(map(len, column), default=0) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(text)}</td>" for text in row) for row in self._rows())
        head = "".join(f"<th>{name}</th>" for name in ("", "claim", "measured", "allowed", "at"))
        return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


@dataclass(frozen=True, repr=False)
class Run:
    """One run of an experiment, as its files hold it.

    Attributes:
        name: the experiment.
        folder: where its files are.
        data: its dataset.
        claims: its claims, judged.
        caption: what its figure shows, in a sentence or two.
        headline: its headline numbers.
    """

    name: str
    folder: Path
    data: xr.Dataset
    claims: Claims
    caption: str
    headline: tuple[Headline, ...]
    _experiment: Experiment

    @functools.cached_property
    def figure(self) -> Figure:
        """The figure, drawn from the dataset."""
        drawn: Figure = self._experiment.module.figure(self.data)
        return drawn

    @property
    def record(self) -> dict[str, Any]:
        """What it was made with: `run.json`."""
        return fileset.manifest(self.folder)

    def __repr__(self) -> str:
        held = sum(claim.holds for claim in self.claims)
        numbers = [f"{number.name}: {number.words()}" for number in self.headline]
        held_of = f"{held} of {len(self.claims)} claims hold; files in {self.folder}"
        return "\n".join([f"{self.name}: {held_of}", *numbers])

    def _repr_html_(self) -> str:
        told = html.escape(repr(self)).replace("\n", "<br>")
        return f"<p>{told}</p>{self.claims._repr_html_()}"


def compare(one: Run, other: Run) -> pd.DataFrame:
    """A row for all that differs between two runs: values, versions, numbers, arrays and claims.

    Of an array the largest difference is told, nan where one of both has none.

    Raises:
        BadInput: one of both is no run.
    """
    import pandas as pd

    for given in (one, other):
        if not isinstance(given, Run):
            raise BadInput(
                f"a {type(given).__name__} is no run to be compared; "
                "allowed: what gl.run and gl.load return"
            )
    rows = [
        *_differing("value", one.record.get("config", {}), other.record.get("config", {})),
        *_differing("version", one.record.get("versions", {}), other.record.get("versions", {})),
        *_differing("headline", _numbers(one), _numbers(other)),
        *_differing("array", _sizes(one.data), _sizes(other.data)),
        *_changed(one.data, other.data),
        *_differing("claim", _verdicts(one.claims), _verdicts(other.claims)),
    ]
    return pd.DataFrame(rows, columns=["kind", "name", "one", "other"])


def _differing(kind: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[list[Any]]:
    names = dict.fromkeys([*one, *other])
    pairs = [(name, one.get(name), other.get(name)) for name in names]
    # A number that is nan in both is no difference.
    return [[kind, name, *both] for name, *both in pairs if both[0] != both[1] and not _nan(*both)]


def _nan(*values: Any) -> bool:
    return all(isinstance(value, float) and math.isnan(value) for value in values)


def _numbers(run: Run) -> dict[str, float]:
    return {number.name: number.value for number in run.headline}


def _sizes(data: xr.Dataset) -> dict[str, dict[str, int]]:
    return {str(name): {str(d): n for d, n in array.sizes.items()} for name, array in data.items()}


def _changed(one: xr.Dataset, other: xr.Dataset) -> Iterator[list[Any]]:
    """The largest difference of every array that both have in the same shape."""
    for name, array in one.data_vars.items():
        if name in other and array.shape == other[name].shape and not array.equals(other[name]):
            numbers = array.dtype.kind in "biufc"
            off = abs(array.values - other[name].values).max() if numbers else None
            yield ["largest difference", str(name), None, off]


def _verdicts(claims: Iterable[Claim]) -> dict[str, str]:
    return {claim.sentence: "holds" if claim.holds else "FAILS" for claim in claims}
