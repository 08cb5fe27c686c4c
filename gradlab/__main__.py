"""The command `gradlab`: a table of subcommands, each of which imports no more than it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import gradlab
from gradlab.errors import BadInput

# `eval "$(gradlab completion)"` in bash; in zsh after `autoload -U bashcompinit && bashcompinit`.
COMPLETION = """\
_gradlab() {
    COMPREPLY=($(gradlab completion "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _gradlab gradlab
"""


class Command(NamedTuple):
    """One subcommand: what may follow it, what it does, and the function that does it.

    `more` is the rest of its help, None where the function answers `--help` itself.
    """

    takes: str
    does: str
    run: Callable[[list[str]], int]
    more: str | None = ""


def dispatch(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line: 0, or 1 for bad input and claims that fail."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            return _tell(usage())
        if words[0] in ("-V", "--version", "version"):
            return _tell(f"gradlab {gradlab.__version__}")
        if words[0] not in COMMANDS:
            from gradlab.experiment import schema

            raise BadInput(schema.unknown("subcommand", words[0], COMMANDS))
        command = COMMANDS[words[0]]
        if {"-h", "--help"} & set(words[1:2]):
            typed = f"gradlab {words[0]} {command.takes}"
            _tell("\n\n".join(filter(None, (typed.rstrip(), command.does, command.more))))
            if command.more is not None:
                return 0
        return command.run(words[1:])
    except BadInput as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: every file is as it was, or whole and new\n")
        return 130


def usage() -> str:
    """What `gradlab --help` says."""
    rows = [(f"gradlab {name} {command.takes}", command.does) for name, command in COMMANDS.items()]
    lines = [(gradlab.__doc__ or "").partition("\n")[0], ""]
    return "\n".join([*lines, *(f"  {typed:<46}{does}" for typed, does in rows)])


def _tell(text: str) -> int:
    sys.stdout.write(text.rstrip() + "\n")
    return 0


def _run(words: list[str]) -> int:
    """Never returns: an experiment as a program ends with its own exit status."""
    from gradlab.experiment import loading
    from gradlab.running import command_line

    if not words or words[0].startswith("-"):
        raise BadInput("no experiment is named; allowed: gradlab run NAME, one of gradlab list")
    file = loading.find(words[0], Path.cwd())
    sys.argv = words
    command_line.run(str(file), command=("gradlab", "run"))


def _list(words: list[str]) -> int:
    from gradlab.experiment import loading

    _none(words, "list")
    found = loading.known(Path.cwd())
    width = max(map(len, found))
    return _tell(
        "\n".join(f"{name:<{width}}  {loading.described(found[name])[0]}" for name in sorted(found))
    )


def _new(words: list[str]) -> int:
    from gradlab.experiment import loading
    from gradlab.running import question

    if len(words) != 1:
        raise BadInput(f"{len(words)} names are given; allowed: one, as in gradlab new my_question")
    here = Path.cwd()
    nearest = loading.projects(here)[0]
    project = nearest if nearest in (here, *here.parents) else here
    for path in question.begin(words[0], project):
        sys.stdout.write(f"{path}\n")
    return _tell(f"They work as they are: gradlab run {words[0]}")


def _page(words: list[str]) -> int:
    from gradlab.page.__main__ import main as page

    return page(words)


def _audit(words: list[str]) -> int:
    from gradlab.diagnosis.command import command

    try:
        return command(words)
    except SystemExit as told:  # argparse answered by itself: help, or words that it does not know
        return int(told.code or 0)


def _completion(words: list[str]) -> int:
    return _tell("\n".join(_continued(words)) if words else COMPLETION)


def _continued(words: Sequence[str]) -> list[str]:
    """What the last of the words may become."""
    from gradlab.experiment import loading
    from gradlab.running import composition

    *before, last = words
    if not before:
        found = list(COMMANDS)
    elif before[0] != "run":
        found = []
    elif len(before) == 1:
        found = sorted(loading.known(Path.cwd()))
    else:
        experiment = loading.load(loading.find(before[1], Path.cwd()))
        keys = {**composition.entries(experiment), "scale": None}
        found = [*(f"{key}=" for key in keys), "--multirun", "--help"]
    return [word for word in found if word.startswith(last)]


def _none(words: Sequence[str], name: str) -> None:
    if words:
        raise BadInput(f"'{words[0]}' follows gradlab {name}; allowed: nothing")


COMMANDS: dict[str, Command] = {
    "run": Command(
        *("NAME [key=value ...] [--multirun]", "run an experiment, or a sweep", _run),
        """\
The names are those of gradlab list; gradlab run NAME --help lists the keys of one, with their
values and limits. The files of a run go to results/NAME/ in the current folder. The exit status
is 0 where every claim holds.

  gradlab run scalar_chain scale=smoke                       small and fast
  gradlab run scalar_chain w=[0.9,1.1]                       values of your own
  gradlab run residual scale=smoke --multirun depth=10,20    a sweep""",
    ),
    "list": Command("", "the experiments that can be run from here", _list),
    "new": Command("NAME", "the two files of a new experiment, which works", _new),
    "page": Command(
        *("[RESULTS] [--site FOLDER]", "the gallery and the lesson of a folder of results", _page),
        """\
It writes index.html and lesson.html into results/, or the folder named; both open in a browser
from there. With --site a folder that any host serves, with all that they link to.""",
    ),
    "audit": Command(
        "PACKAGE.MODULE:FUNCTION", "what a model of your own does to its gradients", _audit, None
    ),
    "completion": Command("", 'tab completion: eval "$(gradlab completion)"', _completion),
}


if __name__ == "__main__":
    sys.exit(dispatch())
