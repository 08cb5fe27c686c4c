"""Ctrl-C, told from a failure."""

from __future__ import annotations

import logging
import signal
import threading
from typing import NoReturn


class Interrupts:
    """Ctrl-C inside the block, told from a failure: within a callback, jax makes it an error."""

    # jax writes the traceback of whatever ends a callback to this log.
    _log = logging.getLogger("jax._src.callback")

    def __enter__(self) -> Interrupts:
        self._seen = False
        self._log.addFilter(self._is_failure)
        self._before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._log.removeFilter(self._is_failure)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._before)

    def _is_failure(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and record.exc_info[0] is KeyboardInterrupt)

    def _note(self, *_: object) -> NoReturn:
        self._seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Go on with an interruption that was swallowed."""
        if self._seen:
            raise KeyboardInterrupt
