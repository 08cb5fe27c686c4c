"""The points of what is swept, each composed, checked and named when it is asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override, Transformer
from omegaconf import DictConfig, OmegaConf

from gradlab.experiment import schema
from gradlab.experiment.loading import Experiment
from gradlab.running import composition
from gradlab.running.identity import Namer
from gradlab.running.settings import Settings
from gradlab.sweeping.lines import Line
from gradlab.sweeping.points import Axis, Point, Points

if TYPE_CHECKING:
    from hydra.types import HydraContext

# So many configs are kept while points are made: those between two seeds of one point.
_KEPT = 4096


@dataclass
class Grid:
    """The points of lines, each checked and composed when it is asked for.

    Values are put into a config that is composed once; only what changes the composition itself,
    such as a config group, is composed for each of its choices.
    """

    exp: Experiment
    context: HydraContext
    config: DictConfig
    fixed: Sequence[str]
    lines: list[Line]

    def __post_init__(self) -> None:
        self._composed: dict[tuple[str, ...], Composed] = {}
        self._known = composition.entries(self.exp)
        self._read = functools.lru_cache(_KEPT)(self._read_anew)

    def settings(self) -> Settings:
        """The suite's settings, which all points share but for seed and precision."""
        return self._read(tuple(0 for _ in self.lines))[0]

    def checked(self) -> tuple[Axis, ...]:
        """The axes, every value checked and none twice.

        Raises:
            BadInput: a value, or two together, are not allowed.
        """
        axes = []
        for number, line in enumerate(self.lines):
            rows, columns = self._column(number)
            self.lines[number] = line if len(rows) == len(line) else line.only(rows)
            axes.append(Axis(columns))
        self._read.cache_clear()
        lengths = [1 if _is_seeds(line) else len(line) for line in self.lines]
        if sum(length > 1 for length in lengths) > 1:
            for index in itertools.product(*map(range, lengths)):
                self._read(index)
        return tuple(axes)

    def _column(self, number: int) -> tuple[Sequence[int], dict[str, Sequence[Any]]]:
        """The rows of a line whose values are new, and those values by key."""
        line = self.lines[number]
        first = [0] * len(self.lines)
        if _is_seeds(line) and isinstance(line.columns[0], range):
            for row in (0, len(line) - 1):
                self._read((*first[:number], row, *first[number + 1 :]))
            return range(len(line)), {"seed": line.columns[0]}
        rows: dict[str, int] = {}
        found: list[dict[str, Any]] = []
        for row in range(len(line)):
            values = self._values((*first[:number], row, *first[number + 1 :]), number)
            # A list of one value is that value: w=0.9 and w=[0.9] are one run.
            same = repr(list(values.values()))
            if same not in rows:
                rows[same] = row
                found.append(values)
        return list(rows.values()), {key: [row[key] for row in found] for key in line.names}

    def _values(self, index: tuple[int, ...], number: int) -> dict[str, Any]:
        """What the keys of one line are at an index: as the config has them, or as chosen."""
        settings, cfg = self._read(index)
        values = {**vars(settings), **schema.values(cfg)}
        typed = self.lines[number].typed(index[number])
        return {key: values.get(key, _unquoted(text)) for key, text in typed.items()}

    def points(self, axes: Sequence[Axis], name: Namer) -> Points:
        """The points, named when they are made."""
        seeds = [number for number, line in enumerate(self.lines) if _is_seeds(line)]
        alike = frozenset(
            n for n, line in enumerate(self.lines) if all(map(self._moves, line.names))
        )

        @functools.lru_cache(_KEPT)
        def of(index: tuple[int, ...]) -> tuple[Any, Settings, Any]:
            settings, cfg = self._read(index)
            return cfg, settings, name.of(cfg, settings.precision)

        def at(index: tuple[int, ...]) -> Point:
            known = tuple(0 if axis in seeds else row for axis, row in enumerate(index))
            cfg, settings, named = of(known)
            seed = axes[seeds[0]].columns["seed"][index[seeds[0]]] if seeds else settings.seed
            values = {
                key: column[row]
                for axis, row in zip(axes, index, strict=True)
                for key, column in axis.columns.items()
            }
            overrides = tuple(
                f"{key}={text}"
                for line, row in zip(self.lines, index, strict=True)
                for key, text in zip(line.keys, line.typed(row).values(), strict=True)
            )
            return Point(cfg, seed, settings.precision, named(seed), index, values, overrides)

        return Points(tuple(map(len, axes)), at, alike)

    def _moves(self, key: str) -> bool:
        """Whether a key's values never change what is compiled."""
        entry = self._known.get(key)
        return key == "seed" or bool(entry and entry.traced and not entry.is_list)

    def _read_anew(self, index: tuple[int, ...]) -> tuple[Settings, Any]:
        """The settings and the config at an index.

        Raises:
            BadInput: a value is not allowed.
        """
        chosen = {
            typed: column[row]
            for line, row in zip(self.lines, index, strict=True)
            for typed, column in zip(line.keys, line.columns, strict=True)
        }
        composing = [key for key in chosen if not self._is_value(key)]
        choice = tuple(f"{key}={Transformer.str(chosen[key])}" for key in composing)
        if choice not in self._composed:
            loader = self.context.config_loader
            whole = [*self.fixed, *choice]
            once = loader.load_sweep_config(self.config, whole) if choice else self.config
            self._composed[choice] = Composed(once, self._known)
        values = {key: value for key, value in chosen.items() if key not in composing}
        return composition.read(self.exp, self._composed[choice].with_values(values))

    def _is_value(self, key: str) -> bool:
        return key in self.config and not key.startswith("+") and "@" not in key


def _is_seeds(line: Line) -> bool:
    return line.names == ("seed",)


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


class Composed:
    """A composed config in which values are replaced with the checks that Hydra makes."""

    def __init__(self, config: DictConfig, known: Mapping[str, schema.Entry]) -> None:
        self._config = composition.without_hydra(config)
        self._whole = composition.plain_values(self._config, resolve=False)
        self._constant = "${" not in str(self._whole)
        self._known = known

    def with_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """All values, with these instead of the composed ones."""
        if self._constant:
            return self._whole | {key: self._as_typed(key, value) for key, value in values.items()}
        for key, value in values.items():
            OmegaConf.update(self._config, key, _plain(value))
        return composition.plain_values(self._config)

    def _as_typed(self, key: str, value: Any) -> Any:
        entry = self._known.get(key)
        if entry and entry.type in (int, float) and type(value) in (int, float):
            return value  # `schema.read` checks it
        OmegaConf.update(self._config, key, _plain(value))
        found = OmegaConf.select(self._config, key)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _plain(value: Any) -> Any:
    """An element of Hydra's grammar as a plain value."""
    return Override._convert_value(value)
