"""What a person sees while a run or a sweep goes on, and at its end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from gradlab.experiment.claim import Claim
    from gradlab.experiment.headline import Headline

Column = tuple[str, dict[str, Any]]

VERDICT: Column = ("", {})
CLAIM: Column = ("claim", {"ratio": 1})


def say(line: str) -> None:
    """One line to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextlib.contextmanager
def busy(what: str) -> Iterator[None]:
    """A moving mark on stderr while the block runs, where stderr is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(what) if console.is_terminal else contextlib.nullcontext():
        yield


def judged(
    question: str, claims: Sequence[Claim], folder: Path, headline: Sequence[Headline] = ()
) -> None:
    """Print the claims of one run as a table, its headline numbers, and where its files are."""
    look = {"justify": "right", "no_wrap": True}
    columns = [(name, look) for name in ("measured", "", "expected", "tolerance")]
    rows = (
        (
            verdict(claim.holds),
            claim.sentence,
            f"{claim.measured:.6g}",
            claim.relation,
            f"{claim.expected:.6g}",
            f"{sum(claim.tolerance.values()):.2g}",
        )
        for claim in claims
    )
    held = sum(claim.holds for claim in claims)
    numbers = [f"{number.name}: {number.words()}" for number in headline]
    end = "\n".join([*numbers, f"{held} of {len(claims)} claims hold; files in {folder}"])
    print_table(question, [VERDICT, CLAIM, *columns], rows, end, width=120)


def verdict(holds: bool) -> str:
    """The word for it, in its colour."""
    return "[green]holds" if holds else "[red]FAILS"


def print_table(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], end: str, width: int
) -> None:
    """Print a table and a last line, `width` columns wide where no terminal has its own width."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for name, look in columns:
        shown.add_column(name, **look)
    for verdict, *rest in rows:  # `[tanh]` is a value and not a colour
        shown.add_row(verdict, *map(escape, rest))
    console = _stdout(width)
    console.print(shown)
    console.print(escape(end), soft_wrap=True)


def _stdout(width: int) -> Console:
    from rich.console import Console

    console = Console(file=sys.stdout)
    return console if console.is_terminal else Console(file=sys.stdout, width=width)


class Steps:
    """How far a sweep is, on stderr: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, name: str, done: int, total: int) -> None:
        from rich.console import Console

        self._name, self._before, self.done, self._total = name, done, done, total
        self._begun = self._said = time.monotonic()
        console = Console(stderr=True)
        self._bar = _bar(name, console) if console.is_terminal else None

    def __enter__(self) -> Steps:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, count: int) -> None:
        """`count` more points are finished."""
        self.reach(self.done + count)

    def reach(self, done: int) -> None:
        """`done` points are finished."""
        if done == self.done:
            return
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now = time.monotonic()
        if now - self._said >= 1.0 or done == self._total:
            self._said = now
            left = (now - self._begun) / (done - self._before) * (self._total - done)
            say(f"{self._name}: {done} of {self._total} points, {left:.0f} s left")


def _bar(name: str, console: Console) -> Any:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(f"{name}:"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
