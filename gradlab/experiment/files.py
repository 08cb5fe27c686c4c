"""Files that appear whole: a kill at any moment leaves the old one or the new one, never a part.

By temporary file, fsync and rename; what a killed process left half-written is tidied away.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradlab.errors import NotWritten


def write_bytes(path: Path, content: bytes) -> None:
    """Put the bytes at `path`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Put the content at `path` as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def remove(path: Path) -> None:
    """Remove what stands at `path`, if anything does.

    Raises:
        NotWritten: it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NotWritten(
            f"'{path}' cannot be removed ({error.strerror}); allowed: a file that this user may"
            " write to, or none"
        ) from error


def folder_for(path: Path) -> Path:
    """The folder, made where it is missing and proved to be writable.

    Raises:
        NotWritten: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise NotWritten(
            f"results folder '{path}' cannot be written ({error.strerror}); "
            "allowed: a folder that this user may write to"
        ) from error


@contextlib.contextmanager
def folder_if_needed(path: Path) -> Iterator[None]:
    """`folder_for(path)` around a block; where the block fails, no new empty folder stays.

    Raises:
        NotWritten: it cannot be made or written to.
    """
    new = [place for place in (path, *path.parents) if not place.exists()]
    folder_for(path)
    try:
        yield
    except BaseException:
        for place in new:
            with contextlib.suppress(OSError):  # something stands in it by now
                place.rmdir()
        raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, whole, when the block ends well.

    Raises:
        NotWritten: for want of space, permission or a folder; what stood there stays.
    """
    try:
        with _temporary(path) as temporary:
            yield temporary
            # mkstemp makes private files; results are as readable as the user's other files.
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
    except OSError as error:
        raise NotWritten(
            f"'{path}' cannot be written ({error.strerror or error}); "
            "allowed: a folder that this user may write to, with space for it"
        ) from error


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    prefix = f".{path.name}.{socket.gethostname()}.{os.getpid()}."
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=".tmp")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Remove the temporary files that processes of this machine left when they were killed."""
    for path in folder.glob(f".*.{socket.gethostname()}.*.tmp"):
        pid = path.name.split(".")[-3]
        if pid.isdecimal() and not alive(int(pid)):
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of that number goes on here; one that nobody has waited for has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # a system without /proc
        return True
    return status.rpartition(")")[2].split()[0] != "Z"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
