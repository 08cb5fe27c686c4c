"""Ctrl-C and a request to end, told from a failure."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from gradlab.experiment import files

# What asks a program to end and lets it say so. A signal that is ignored, as under nohup, stays so.
_SIGNALS = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
]

# Seconds between two looks at a parent, and those that a process has after its parent's end.
_LOOK, _GRACE = 0.5, 5.0

# Which of them came last in this process.
_last = signal.SIGINT


def status() -> int:
    """The exit status of a program that the last signal ended, as a shell has it."""
    return 128 + _last


@contextlib.contextmanager
def ending(told: str) -> Iterator[None]:
    """A signal inside the block ends the process at once, with a line that says so.

    For the time before there is anything to lose: an exception in the middle of the import of a
    library in C may crash it.
    """

    def end(number: int, _: object) -> None:
        os.write(2, f"interrupted: {told}\n".encode())
        os._exit(128 + number)

    with _handled(end):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """The handler for each signal, and those before afterwards; only a main thread may set one."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


@functools.cache
def end_with(parent: int) -> None:
    """End this process soon after the process `parent`, which a kill lets tell nobody."""
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while files.alive(parent):
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGINT)  # for what is finished to be saved
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGTERM)


class Interrupts:
    """A signal inside the block is a KeyboardInterrupt; within a callback, jax makes it an error.

    One that nobody could pass on, as in a finaliser, is raised once more.
    """

    # jax writes the traceback of whatever ends a callback to this log.
    _log = logging.getLogger("jax._src.callback")

    def __enter__(self) -> Interrupts:
        importlib.import_module("jax")  # an exception in the middle of that could crash it
        self._seen = False
        self._before = contextlib.ExitStack()
        self._before.enter_context(_handled(self._note))
        self._before.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
        self._before.callback(self._log.removeFilter, self._is_failure)
        self._log.addFilter(self._is_failure)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(self, *_: object) -> None:
        self._before.close()

    def _is_failure(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)

    def _note(self, number: int, _: object) -> NoReturn:
        global _last
        self._seen, _last = True, signal.Signals(number)
        raise KeyboardInterrupt

    def _swallowed(self, told: Any) -> None:
        if issubclass(told.exc_type, KeyboardInterrupt):
            # Not here, where it would be swallowed again.
            threading.Timer(0.05, os.kill, (os.getpid(), _last)).start()
        else:
            self._unraisable(told)

    def check(self) -> None:
        """Go on with an interruption that was swallowed."""
        if self._seen:
            raise KeyboardInterrupt
