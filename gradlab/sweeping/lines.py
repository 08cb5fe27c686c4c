"""What is swept, as it was typed: a line of values for each key, or for keys that go together."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep, Transformer
from omegaconf import DictConfig, OmegaConf

from gradlab.errors import BadInput
from gradlab.experiment import schema
from gradlab.experiment.loading import Experiment
from gradlab.running import composition, grammar
from gradlab.running.settings import NODES, NOT_NAMED

if TYPE_CHECKING:
    from hydra.types import HydraContext


@dataclass(frozen=True)
class Line:
    """What is swept along one axis, as it was typed.

    Attributes:
        keys: the swept keys, with the `+` of those that are added.
        columns: what each takes, elements of Hydra's grammar, one list a key.
    """

    keys: tuple[str, ...]
    columns: tuple[Sequence[Any], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The keys as the config has them."""
        return tuple(map(key_of, self.keys))

    def typed(self, row: int) -> dict[str, str]:
        """Key to what would be typed for it alone."""
        texts = (Transformer.str(column[row]) for column in self.columns)
        return dict(zip(self.names, texts, strict=True))

    def only(self, rows: Sequence[int]) -> Line:
        """The line with some of its rows."""
        return Line(self.keys, tuple([column[row] for row in rows] for column in self.columns))


def key_of(line: str) -> str:
    """The key of an override, without the `+` of one that is added."""
    return line.partition("=")[0].lstrip("+")


def overrides_of(context: HydraContext, arguments: Sequence[str]) -> dict[str, Override]:
    """Key to its override, the last one of each."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    parsed = {key_of(over.get_key_element()): over for over in parser.parse_overrides([*arguments])}
    for key, over in parsed.items():
        if over.is_sweep_override() and not over.is_discrete_sweep():
            raise BadInput(f"{_typed(over)} has no points of its own; allowed: a list or a range")
        if over.is_sweep_override():
            _check_swept(key, _typed(over))
    return parsed


def _check_swept(key: str, typed: str) -> None:
    if key.partition(".")[0] in (*NODES, *NOT_NAMED):
        raise BadInput(f"{typed} is no sweep of values; allowed: one value for '{key}'")


def _typed(over: Override) -> str:
    return f"'{over.input_line}'"


def of_overrides(exp: Experiment, config: DictConfig, swept: Mapping[str, Override]) -> list[Line]:
    """What is swept: a line for each key, and one for all keys that go along together."""
    known = composition.entries(exp)
    singles = {
        key: Line((over.get_key_element(),), (_elements(over, known.get(key)),))
        for key, over in swept.items()
    }
    asked: Any = OmegaConf.to_container(config.hydra.sweeper)
    tables = [_zipped(group, singles) for group in _groups(asked.get("zip"))]
    tables += [] if asked.get("points") is None else [_listed(asked["points"], singles)]
    together = {key for line in tables for key in line.names}
    lines = [line for key, line in singles.items() if key not in together]
    return [*([functools.reduce(_product, tables)] if tables else []), *lines]


def _elements(over: Override, entry: schema.Entry | None) -> Sequence[Any]:
    """The elements of a sweep."""
    value = over.value()
    if isinstance(value, grammar.Spaced) and entry is not None and entry.type is int:
        numbers: Any = value.list
        return [round(number) for number in numbers]
    if isinstance(value, RangeSweep) and not value.shuffle:
        counted: Any = value.range()
        elements: Sequence[Any] = counted if isinstance(counted, range) else list(counted)
    else:
        elements = list(over.sweep_iterator())
    if not elements:
        raise BadInput(f"{_typed(over)} names nothing; allowed: a sweep of at least one value")
    if len(elements) > grammar.MOST_VALUES and over.key_or_group != "seed":
        raise BadInput(
            f"{_typed(over)} names {len(elements)} values; allowed: at most {grammar.MOST_VALUES}"
        )
    return elements


def _groups(asked: Any) -> list[list[str]]:
    """The keys of each `zip(...)`, none twice."""
    groups = [[group] if isinstance(group, str) else group for group in _as_list(asked)]
    keys = [key for group in groups for key in _as_list(group)]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise BadInput(f"zip names '{key}' twice; allowed: each key once")
    return groups


def _as_list(asked: Any) -> list[Any]:
    if not isinstance(asked, list | None):
        raise BadInput(f"hydra.sweeper.zip is {asked!r}; allowed: [[KEY,KEY],...], as zip(KEY,KEY)")
    return asked or []


def _zipped(group: Sequence[str], singles: Mapping[str, Line]) -> Line:
    """The lines of keys that go along together, as one."""
    words = f"zip({','.join(group)})"
    for key in group:
        if key not in singles:
            raise BadInput(f"{words} names '{key}', which is not swept; allowed: {_named(singles)}")
    lines = [singles[key] for key in group]
    if len({*map(len, lines)}) > 1:
        lengths = " and ".join(f"{len(line)} of {line.names[0]}" for line in lines)
        raise BadInput(f"{words} has {lengths} values; allowed: as many of each")
    return Line(
        tuple(key for line in lines for key in line.keys),
        tuple(column for line in lines for column in line.columns),
    )


def _named(singles: Mapping[str, Line]) -> str:
    return ", ".join(singles) or "keys with several values each"


def _listed(listed: Any, singles: Mapping[str, Line]) -> Line:
    """The line of a list of points, `points=[{depth:4,w:0.9},{depth:8,w:1.1}]`."""
    allowed = "allowed: points=[{KEY:VALUE,...},...], each with the same keys"
    rows = listed if isinstance(listed, list) else []
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        raise BadInput(f"points is {listed!r}; {allowed}")
    keys = tuple(map(str, listed[0]))
    for row in listed:
        if tuple(map(str, row)) != keys and {*map(str, row)} != {*keys}:
            raise BadInput(f"points has {listed[0]} and {row}; {allowed}")
    for key in keys:
        _check_swept(key, "points")
        if key in singles:
            raise BadInput(f"'{key}' is swept, and is a key of points; allowed: one of the two")
    return Line(keys, tuple([grammar.element(row[key]) for row in listed] for key in keys))


def _product(one: Line, other: Line) -> Line:
    """Every row of one line with every row of another."""
    rows = list(itertools.product(range(len(one)), range(len(other))))
    first = tuple([column[row] for row, _ in rows] for column in one.columns)
    second = tuple([column[row] for _, row in rows] for column in other.columns)
    return Line((*one.keys, *other.keys), (*first, *second))


def of_jobs(context: HydraContext, jobs: Sequence[Sequence[str]]) -> list[Line]:
    """A line for each key where the jobs are the grid of all, else one table."""
    parser = OverridesParser.create(config_loader=context.config_loader)
    rows = [[over.get_key_element() for over in parser.parse_overrides(list(job))] for job in jobs]
    if not jobs[0]:
        return []
    keys = tuple(rows[0])
    texts = [[line.partition("=")[2] for line in job] for job in jobs]
    columns = tuple(list(dict.fromkeys(column)) for column in zip(*texts, strict=True))
    element = functools.partial(_parsed_element, parser)
    if math.prod(map(len, columns)) == len({*map(tuple, texts)}):
        return [
            Line((key,), (list(map(element, column)),))
            for key, column in zip(keys, columns, strict=True)
        ]
    table = zip(*dict.fromkeys(map(tuple, texts)), strict=True)
    return [Line(keys, tuple(list(map(element, column)) for column in table))]


def _parsed_element(parser: OverridesParser, text: str) -> Any:
    return parser.parse_override(f"k={text}")._value
