"""`python -m gradlab.page [results]`: both pages and README's table, from what is on disk."""

from __future__ import annotations

import sys
from pathlib import Path

from gradlab.errors import BadInput
from gradlab.page import build, readme


def main(arguments: list[str]) -> int:
    """The exit status: 0 when both pages are written, whatever they have to show."""
    try:
        if len(arguments) > 1:
            raise BadInput(f"{len(arguments)} arguments were given; allowed: one folder of results")
        results = Path(arguments[0] if arguments else "results")
        written, notes = build.pages(Path.cwd(), results)
        for path in written:
            sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.2f} MB)\n")
        for note in notes:
            sys.stderr.write(f"note: {note}\n")
        readme.renew(Path.cwd())
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
