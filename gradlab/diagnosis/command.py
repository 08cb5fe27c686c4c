"""`gradlab audit package.module:make_model`: the audit from a shell, with an exit status for CI."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradlab.diagnosis.audit import Audit, audit
from gradlab.errors import BadInput

HEALTHY, SICK, REFUSED = 0, 1, 2

_LIBRARIES = (str(Path(__file__).parent.parent), "site-packages", "importlib")


def command(argv: Sequence[str]) -> int:
    """The exit status: 0 for no finding (or nothing new), 1 for one, 2 for what cannot be read.

    Args:
        argv: the words behind `audit`.
    """
    told = _parser().parse_args(argv)
    try:
        case = made(told.model)
        found = _asked(f"The audit of {told.model}", lambda: audit(*case, layers=told.layers))
        status = SICK if found.findings else HEALTHY
        sys.stdout.write(f"{found}\n")
        if told.compare:
            comparison = found.compare(told.compare)
            sys.stdout.write(f"\nbeside {told.compare}:\n{comparison}\n")
            status = comparison.exit_code
        for path in told.save:
            _save(found, path)
    except BadInput as refusal:
        sys.stderr.write(f"gradlab audit: {refusal}\n")
        return REFUSED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gradlab audit", description=__doc__)
    parser.add_argument("model", help="package.module:function, which returns (model, batch, loss)")
    parser.add_argument("--layers", default="*", help="which layers the table shows: blocks.*")
    parser.add_argument(
        "--save", action="append", default=[], metavar="FILE", help="audit.json or audit.html"
    )
    parser.add_argument(
        "--compare", metavar="FILE", help="a saved audit.json: only what is new is a failure"
    )
    return parser


def made(name: str) -> tuple[Any, Any, Any]:
    """What a function `package.module:function` returns: (model, batch, loss)."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise BadInput(f'"{name}" names no function; give package.module:function.')
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(_asked(f"Importing {module}", lambda: _imported(module)), function, None)
    finally:
        sys.path.pop(0)
    if not callable(make):
        raise BadInput(
            f'"{name}" is a {type(make).__name__}; it must be a function.'
            if make is not None
            else f'The module {module} has no "{function}".'
        )
    case = _asked(f"{name}()", make)
    if not isinstance(case, tuple) or len(case) != 3:
        raise BadInput(
            f"{name}() returned a {type(case).__name__}; it must return (model, batch, loss)."
        )
    return case


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BadInput(f"The module {module} cannot be imported: {error}.") from None


def _asked(what: str, call: Callable[[], Any]) -> Any:
    """What a call of the user's code returns; an error of it is told with its place.

    An error that is not caught would leave with the exit status of a finding.
    """
    try:
        return call()
    except BadInput:
        raise
    except Exception as error:
        message = str(error).strip().partition("\n")[0].rstrip(".")
        raise BadInput(
            f"{what} raised {type(error).__name__}: {message} ({_place(error)})."
        ) from error


def _place(error: Exception) -> str:
    """The last line of the user's own code that an error went through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not any(part in f.filename for part in _LIBRARIES)]
    last = (own or frames)[-1]
    return f"{Path(last.filename).name}, line {last.lineno}"


def _save(found: Audit, path: str) -> None:
    try:
        found.save(path)
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}.") from None
