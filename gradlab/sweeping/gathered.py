"""What the finished points of a sweep say, read from the store some at a time, and judged."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.experiment import fileset, loading
from gradlab.experiment.loading import Experiment
from gradlab.running.store import Store
from gradlab.sweeping import points, programs
from gradlab.sweeping.join import Joined
from gradlab.sweeping.points import Point, Some, Sweep
from gradlab.sweeping.programs import Failure
from gradlab.sweeping.summary import Summary

if TYPE_CHECKING:
    from gradlab.experiment.claim import Claim
    from gradlab.experiment.dataset import Named

# So many points are read and judged at a time.
BATCH = 2000

# Texts of more bytes than this are kept on disk.
_IN_MEMORY = 2**22

# A point that has no result or no verdict, and why.
Unfinished = tuple[Point, Failure]


class Texts:
    """A text for some of the places of a sweep, on disk where there are many; read by place."""

    def __init__(self, num_places: int) -> None:
        self._held = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        self._ends = np.zeros((num_places, 2), np.int64)

    def put(self, place: int, text: str) -> None:
        """The text of a place, which has none yet."""
        begin = self._held.seek(0, os.SEEK_END)
        self._held.write(text.encode())
        self._ends[place] = begin, self._held.tell()

    def close(self) -> None:
        """Give back the room that they take."""
        self._held.close()

    def __iter__(self) -> Iterator[str]:
        for begin, end in self._ends[self._ends[:, 1] > self._ends[:, 0]].tolist():
            self._held.seek(begin)
            yield self._held.read(end - begin).decode()


@dataclass
class Gathered:
    """What the finished points of a sweep say, read from the store some at a time.

    Attributes:
        exp: the experiment.
        sweep: its points.
        ways: how they were computed.
        without_result: the points that nobody finished.
        unjudged: those whose claims raise.
        num_finished: how many have a result.
    """

    exp: Experiment
    sweep: Sweep
    ways: list[Any] = dataclasses.field(default_factory=list)
    without_result: list[Point] = dataclasses.field(default_factory=list)
    unjudged: list[Unfinished] = dataclasses.field(default_factory=list)
    num_finished: int = 0

    def __post_init__(self) -> None:
        self.joined, self.seen = Joined(self.sweep), Summary(self.sweep)
        self.claims, self.headline = (Texts(len(self.sweep.points)) for _ in range(2))

    def close(self) -> None:
        """Give back the room that the verdicts take."""
        self.claims.close()
        self.headline.close()

    def read(self, store: Store, chunk: int | None) -> None:
        """Read and judge every finished point."""
        for batch in _batches(points.chunks(self.sweep.points, chunk)):
            with_places = list(zip(batch.places.tolist(), batch, strict=True))
            found, ways = store.load(point for _, point in with_places)
            self.ways += [way for way in ways if way not in self.ways]
            for place, point in with_places:
                if point.key in found:
                    self._put(place, point, dict(found[point.key]))
                else:
                    self.without_result.append(point)
        # Whatever the order in which they were computed.
        self.without_result.sort(key=lambda point: point.index)
        self.unjudged.sort(key=lambda pair: pair[0].index)

    def _put(self, place: int, point: Point, arrays: dict[str, Named]) -> None:
        run = loading.label(self.exp, point.cfg, point.seed, arrays)
        self.joined.put(place, run)
        self.num_finished += 1
        try:
            whole = hasattr(self.exp.module, "sweep_claims")
            claims = [] if whole else loading.judge(self.exp, run)
            numbers = loading.headline(self.exp, run)
        except Exception as error:
            why = programs.failure(error)
            self.unjudged.append(
                (point, dataclasses.replace(why, error=f"judging it: {why.error}"))
            )
            return
        self.seen.put(place, claims, numbers)
        told = {"point": dict(point.values)}
        self.claims.put(place, _lines(told | claim.record() for claim in claims))
        self.headline.put(place, _lines(told | number.record() for number in numbers))

    def judged(self, whole: Sequence[Claim]) -> bytes:
        """What claims.json holds: a line for each claim and number, point by point."""
        claims = [_lines(claim.record() for claim in whole)] if whole else self.claims
        return fileset.as_judged(claims, self.headline)


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return ",\n".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)


def _batches(chunks: Iterable[Sequence[Point]]) -> Iterator[Some]:
    """Neighbouring chunks together, so that no file is opened for one point alone."""
    waiting: list[Some] = []
    for chunk in chunks:
        assert isinstance(chunk, Some)
        waiting.append(chunk)
        if sum(map(len, waiting)) >= BATCH:
            yield _together(waiting)
            waiting = []
    if waiting:
        yield _together(waiting)


def _together(chunks: Sequence[Some]) -> Some:
    return Some(chunks[0].points, np.concatenate([chunk.places for chunk in chunks]))
