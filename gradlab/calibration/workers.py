"""Every experiment in a process of its own, as many at a time as there are processors.

A process that ends takes its compiled programs with it. All together take a given time, however
many there are: each has the same share of what is left, so that what one leaves goes to the rest.
This is where it is decided that both studies of `make verify` end in time: more experiments make
each share smaller, and what does not fit into it is left for the next time (records).
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

# From the file of an experiment, a scale, the entropy of its seeds, its time in seconds, and what
# was found before.
Assignment = Callable[[Path, str, int, float, Any], Any]


class Deadline:
    """The end of a share of time, which begins at once."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        """Whether it is past."""
        return time.monotonic() >= self._end


def each(
    task: Assignment,
    assigned: Sequence[tuple[Path, Any]],
    scale: str,
    entropy: int,
    minutes: float,
) -> Iterator[tuple[str, Any, float]]:
    """The name of each experiment, what `task` found or raised, and its seconds, as they end.

    Args:
        task: what is to be done with each file.
        assigned: the files of the experiments, each with what was found before; in this order.
        scale: the scale of their configs.
        entropy: of the seeds.
        minutes: for all together.
    """
    count = min(len(assigned), os.cpu_count() or 1)
    end, waiting = time.monotonic() + 60 * minutes, list(assigned)
    running: dict[Future[Any], tuple[str, float]] = {}
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads of jax
    with ProcessPoolExecutor(count, spawn, max_tasks_per_child=1) as pool:
        while waiting or running:
            while waiting and len(running) < count:
                share = (end - time.monotonic()) * count / (len(waiting) + len(running))
                file, before = waiting.pop(0)
                given = file, scale, entropy, max(share, 0.0), before
                running[pool.submit(task, *given)] = file.stem, time.monotonic()
            ended, _ = wait(running, return_when=FIRST_COMPLETED)
            for done in ended:
                name, start = running.pop(done)
                yield name, done.exception() or done.result(), time.monotonic() - start
