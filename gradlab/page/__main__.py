"""`python -m gradlab.page [results] [--site folder]`: both pages and README's table, from disk."""

from __future__ import annotations

import sys
from pathlib import Path

from gradlab.errors import BadInput
from gradlab.page import build, readme, site


def main(arguments: list[str]) -> int:
    """The exit status: 0 when both pages are written, whatever they have to show."""
    try:
        results, folder = _asked(arguments)
        if folder is None:
            written, notes = build.pages(Path.cwd(), results)
        else:
            written, notes = site.publish(Path.cwd(), results, folder)
        for path in written:
            sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.2f} MB)\n")
        for note in notes:
            sys.stderr.write(f"note: {note}\n")
        readme.renew(Path.cwd())
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _asked(arguments: list[str]) -> tuple[Path, Path | None]:
    """The folder of results, and that of a site where one is asked for."""
    words, folder = list(arguments), None
    if "--site" in words:
        at = words.index("--site")
        if at + 1 == len(words):
            raise BadInput("no folder follows --site; allowed: one, as in --site site")
        folder = Path(words[at + 1])
        del words[at : at + 2]
    if len(words) > 1:
        raise BadInput(f"{len(words)} arguments were given; allowed: one folder of results")
    return Path(words[0] if words else "results"), folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
