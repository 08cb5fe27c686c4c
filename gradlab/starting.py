"""What a program is told first: from here on a signal ends it in one line.

An experiment imports for some tenths of a second before it is a run, and a Ctrl-C in that time
would end in a traceback through whatever is being imported. Only programs that are experiments,
and `gradlab run`, are told: who imports the library into a program of their own keeps theirs.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import pairwise

_SIGNALS = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
_TOLD = b"interrupted: files of finished runs are kept; the same command goes on from there\n"


def tell() -> None:
    """Handle the signals that are not ignored, if the program is a run."""
    if not (_is_experiment(getattr(sys.modules["__main__"], "__file__", None)) or _runs_one()):
        return
    for number in _SIGNALS:
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, _: object) -> None:
    # An exception in the middle of the import of a library in C may crash it.
    os.write(2, _TOLD)
    os._exit(128 + number)


def _is_experiment(file: str | None) -> bool:
    """Whether a file stands in `experiments/` and has its values in `configs/`."""
    folder, name = os.path.split(os.path.abspath(file or ""))
    project, room = os.path.split(folder)
    values = os.path.join(project, "configs", f"{os.path.splitext(name)[0]}.yaml")
    return room == "experiments" and os.path.isfile(values)


def _runs_one() -> bool:
    words = [os.path.basename(word) for word in sys.orig_argv]
    return ("gradlab", "run") in pairwise(words)
