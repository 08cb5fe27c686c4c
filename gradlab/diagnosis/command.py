"""`gradlab audit package.module:make_model`: the audit from a shell, with an exit status for CI."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from gradlab.diagnosis.audit import audit
from gradlab.errors import BadInput

HEALTHY, SICK, REFUSED = 0, 1, 2


def command(argv: Sequence[str]) -> int:
    """The exit status: 0 for no finding (or nothing new), 1 for one, 2 for what cannot be read.

    Args:
        argv: the words behind `audit`.
    """
    told = _parser().parse_args(argv)
    try:
        found = audit(*made(told.model), layers=told.layers)
        status = SICK if found.findings else HEALTHY
        sys.stdout.write(f"{found}\n")
        if told.compare:
            comparison = found.compare(told.compare)
            sys.stdout.write(f"\nbeside {told.compare}:\n{comparison}\n")
            status = comparison.exit_code
        for path in told.save:
            found.save(path)
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
    module, colon, function = name.partition(":")
    if not colon:
        raise BadInput(f'"{name}" names no function; give package.module:function.')
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f'"{name}" cannot be imported: {error}.') from None
    finally:
        sys.path.pop(0)
    case = make()
    if not isinstance(case, tuple) or len(case) != 3:
        raise BadInput(
            f"{name}() returned a {type(case).__name__}; it must return (model, batch, loss)."
        )
    return case
