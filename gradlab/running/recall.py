"""Programs that need not be traced again: remembered with every file that they were traced from.

A program's name takes seconds to find, since JAX must trace it. It is the same as before where
every file is that was imported or read for it, and so is what Python and JAX are told from
outside. Where that cannot be known it is traced: a package in C may have read a file unseen, or
another process was asked. Inside Python anything may have been replaced since it was imported,
so only a process that was started for this run may recall.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlab.errors import NotWritten
from gradlab.experiment import files
from gradlab.lazy import np

# What asks somebody else, whose answer may be another one next time.
_ASKING = frozenset(
    ("subprocess.Popen", "os.system", "os.posix_spawn", "socket.connect", "sqlite3.connect")
)
_LISTING = frozenset(("os.listdir", "os.scandir"))

# Python tells nobody of these questions about a file, whose answers a program may depend on.
_LOOKS = ("stat", "lstat", "access")

# Before the path of a file that was only asked about, of which a folder's content is no part.
_LOOKED = "?"

# Packages in C that open files through Python alone, or none.
_OPEN = frozenset(
    (
        "PIL",
        "cftime",
        "contourpy",
        "google",
        "jax_cuda12_plugin",
        "jax_cuda13_plugin",
        "jax_rocm7_plugin",
        "jaxlib",
        "kiwisolver",
        "markupsafe",
        "matplotlib",
        "ml_dtypes",
        "msgpack",
        "numpy",
        "pandas",
        "scipy",
        "yaml",
    )
)

# The one of their parts that opens a file by itself: a font, by its name.
_OPENS = "_imagingft"

# What a shell or a scheduler sets anew for each process, and no program asks for.
_PASSING = ("_", "COLUMNS", "LINES", "OLDPWD", "PWD", "SHLVL", "PYTHONHASHSEED", "PYTEST_", "SSH_")


def process_start() -> int:
    """The time at which this process began, in nanoseconds; now, where the system does not say."""
    try:
        # A tick more, since it is rounded down; Python takes longer to read its first file.
        ticks = (
            int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
            + 1
        )
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ticks * 10**9 // os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        age = 0
    return time.time_ns() - age


@dataclass
class Reads:
    """What was read while it was watched.

    Attributes:
        since: the time at which the process began, in nanoseconds.
        files: the paths that were opened, as they were given.
        looked: those of which was asked whether or what they are.
        folders: the folders that were listed.
        asked: whom else was asked.
    """

    since: int = field(default_factory=process_start)
    files: set[str] = field(default_factory=set)
    looked: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


_watches: list[Reads] = []
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watches:
        return
    if event == "open" and isinstance(arguments[0], str):
        for watch in _watches:
            watch.files.add(arguments[0])
    elif event in _LISTING and not isinstance(arguments[0], int):  # which was opened by its name
        for watch in _watches:
            watch.folders.add(os.fsdecode(arguments[0] or "."))
    elif event in _ASKING:
        for watch in _watches:
            watch.asked.add(event)


@contextlib.contextmanager
def watched(reads: Reads) -> Iterator[None]:
    """Everything that Python opens or lists in the block is noted in `reads`."""
    if not _hooked:  # a hook stays for good
        _hooked.append(True)
        sys.addaudithook(_hook)
    _watches.append(reads)
    looks = {name: getattr(os, name) for name in _LOOKS}
    for name, look in looks.items():
        setattr(os, name, _seen(look, reads))
    try:
        yield
    finally:
        _watches.remove(reads)
        for name, look in looks.items():
            setattr(os, name, look)


def _seen(look: Callable[..., Any], reads: Reads) -> Callable[..., Any]:
    """A question about a file that notes which file it was asked of."""

    @functools.wraps(look)
    def asked(path: Any, *more: Any, **how: Any) -> Any:
        if isinstance(path, str | os.PathLike):
            reads.looked.add(os.fsdecode(path))
        return look(path, *more, **how)

    return asked


# ---- what is read while a program runs

_NOTE = "read.json"


@contextlib.contextmanager
def noted(store: Path) -> Iterator[None]:
    """Every file that is read in the block is noted in the folder of a store.

    A program that calls Python while it runs is named by the content of these, too.
    """
    reads = Reads()
    try:
        with watched(reads):
            yield
    finally:
        paths = {os.path.abspath(path) for path in reads.files | reads.looked}
        own = {path for path in paths if _is_data(path, store)}
        known = _noted(store)
        if own - {*known}:
            with contextlib.suppress(NotWritten, OSError):  # the folder may only be read
                files.write_json(store / _NOTE, sorted(own | {*known}))


def _is_data(path: str, store: Path) -> bool:
    """Whether a file that was read holds data of somebody's own; of code the syntax counts."""
    below = path.startswith((str(store.absolute()), str(Path(sys.prefix).absolute())))
    return not below and not _is_passing(path) and not path.endswith(".py") and os.path.isfile(path)


def _noted(store: Path) -> list[str]:
    try:
        held = json.loads((store / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [str(path) for path in held] if isinstance(held, list) else []


def read_while_running(store: Path | None) -> dict[str, str]:
    """Each file that was read while a program of the store ran, and its stamp as it is now."""
    return {path: _stamp(path) for path in (_noted(store) if store else ())}


@dataclass(frozen=True)
class Recall:
    """The programs of one experiment that were traced before, in one file."""

    path: Path
    reads: Reads

    def program(self, structure: Any, trace: Callable[[], str]) -> str:
        """The name of the program for a structure: recalled, or traced and remembered."""
        asked = _digest(json.dumps([structure, _outside()], default=str, sort_keys=True).encode())
        remembered = self._remembered()
        if asked in remembered.get("programs", {}):
            return str(remembered["programs"][asked])
        before = _drawn()
        with watched(self.reads):
            name = trace()
        if _drawn() != before:
            self.reads.asked.add("random")
        stamps = self._stamps()
        if stamps is not None:
            self._remember(asked, name, remembered, stamps)
        return name

    def _remembered(self) -> dict[str, Any]:
        """What the file says, if every file that it names is as it was."""
        try:
            held: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            same = all(_stamp(path) == stamp for path, stamp in held["files"].items())
            return held if same and isinstance(held["programs"], dict) else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _remember(
        self, asked: str, name: str, before: Mapping[str, Any], stamps: dict[str, str]
    ) -> None:
        known = {
            "files": before.get("files", {}) | stamps,
            "programs": before.get("programs", {}) | {asked: name},
        }
        with contextlib.suppress(NotWritten, OSError):  # it only saves time
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.path, known)

    def _stamps(self) -> dict[str, str] | None:
        """Each file that was read, imported or listed, and its stamp; None where one is unsure."""
        modules = list(sys.modules.values())
        loaded = {file for module in modules if (file := getattr(module, "__file__", None))}
        if self.reads.asked or any(map(_may_read_unseen, loaded)):
            return None
        opened = {os.path.abspath(path) for path in self.reads.files | self.reads.folders}
        opened |= {_source(path) for path in opened if _is_cached(path)}
        looked = {os.path.abspath(path) for path in self.reads.looked} - opened - loaded
        wanted = {path for path in opened if not _is_passing(path)} | loaded
        wanted |= {_LOOKED + path for path in looked if not _is_passing(path)}
        stamps = {path: _stamp(path) for path in sorted(wanted)}
        # What changed after it was imported may not be what was imported.
        return None if any(_newer(path, self.reads.since) for path in stamps) else stamps


def _drawn() -> str:
    """The states of the generators of random numbers that every module shares."""
    return _digest(repr((random.getstate(), np.random.get_state())).encode())


def _outside() -> list[Any]:
    """What Python and JAX were told from outside."""
    told = {name: text for name, text in os.environ.items() if not name.startswith(_PASSING)}
    return [sys.version, sys.path, sys.flags, told]


def _packages() -> tuple[str, ...]:
    return tuple(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib"))


def _is_passing(path: str) -> bool:
    """Whether a path says nothing of the program: of the system, of a cache, of a package."""
    import jax

    cache = str(jax.config.values["jax_compilation_cache_dir"] or "/proc")
    return path.startswith(("/proc/", "/sys/", "/dev/", cache, *_packages())) or (
        path.endswith(".pyi") or _is_cached(path)
    )


def _is_cached(path: str) -> bool:
    """Whether a file is what Python keeps of a source that it has compiled."""
    return path.endswith(".pyc") and "__pycache__" in Path(path).parts


def _source(path: str) -> str:
    """The source of which a file is kept: it alone is read where nothing has changed."""
    try:
        return importlib.util.source_from_cache(path)
    except ValueError:  # a name with a dot in it
        name = Path(path).name.partition(f".{sys.implementation.cache_tag}")[0]
        return str(Path(path).parent.parent / f"{name}.py")


def _may_read_unseen(path: str) -> bool:
    if not path.endswith((".so", ".pyd")) or "lib-dynload" in path:
        return False
    return _OPENS in path or not _OPEN.intersection(Path(path).parts)


def _stamp(path: str) -> str:
    """Content where it is the user's own, size and time where it is a package's."""
    if path.startswith(_LOOKED):
        path = path.removeprefix(_LOOKED)
        return "folder" if os.path.isdir(path) else _stamp(path)
    try:
        if os.path.isdir(path):
            return _digest("\n".join(sorted(os.listdir(path))).encode())
        if path.startswith(_packages()):
            told = os.stat(path)
            return f"{told.st_size} {told.st_mtime_ns}"
        return _digest(Path(path).read_bytes())
    except OSError:
        return "missing"


def _newer(path: str, moment: int) -> bool:
    path = path.removeprefix(_LOOKED)
    try:
        return os.path.isfile(path) and os.stat(path).st_ctime_ns > moment
    except OSError:
        return False


def _digest(held: bytes) -> str:
    return hashlib.sha256(held).hexdigest()[:32]
