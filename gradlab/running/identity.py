"""What a point is named by: the program that computes it, what goes in, and what it runs on.

The program is the text that JAX lowers `compute` to, constants and all, with the tree of labelled
arrays that it returns; so a comment, a claim or a figure that is edited changes no name, and
whatever `compute` calls does, wherever it stands. JAX names the entries of its compilation cache
in the same way. A name is given by the process that computes, from the code that it has loaded.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlab.errors import BadInput
from gradlab.experiment import schema
from gradlab.experiment.loading import Experiment
from gradlab.lazy import jax
from gradlab.running import machine, provenance
from gradlab.running.recall import Recall, read_while_running

# Functions outside the program that JAX itself calls by name. What another name does, a callback
# into Python above all, the program's text does not say.
_JAX_CALLS = re.compile(
    r"(lapack|(cu|hip)(solver|blas|dnn|fft|sparse))_|(cu|hip)_(threefry2x32|cholesky_update)"
    r"|cublas\$|cudnn\$|mhlo\.|chlo\.|xla\.|(Sharding|SPMD\w+|annotate_device_placement)$"
)
_CALL = re.compile(r'custom_call @"?([^"(\s]+)')

# Where the library computes, and the parts of an experiment that only look at what was computed.
LIBRARY = Path(__file__).parent.parent
_COMPUTING_WINGS = ("arithmetic", "models", "measuring", "theory")
_LOOKING = ("figure", "caption", "claims", "FAULTS", "HARMLESS", "LESSON", "GROUP")

# What the bits depend on besides the program; its own packages are in the program.
_VERSIONS = ("jax", "jaxlib", "numpy")

# Parts of the names of JAX's settings that change what is told, kept or refused, and nothing else.
_SILENT = (
    *("cache", "log", "traceback", "debug", "dump", "platform", "visible_devices", "pprint"),
    *("check", "guard", "leak", "rank_promotion"),
)


@dataclass(frozen=True)
class Case:
    """One evaluation of `compute`, with the name of its content.

    Attributes:
        cfg: its config.
        seed: its seed.
        precision: its default float format.
        key: what is equal in all that matters has an equal key, 32 hexadecimal digits.
    """

    cfg: Any
    seed: int
    precision: str
    key: str

    def plain(self) -> dict[str, Any]:
        """What a file of the store tells about it, as JSON holds it."""
        return {
            "key": self.key,
            "seed": self.seed,
            "precision": self.precision,
            "config": schema.values(self.cfg),
        }


@dataclass
class Namer:
    """Names for what one experiment gives, computed in one way; remembers its programs.

    Attributes:
        experiment: the experiment.
        method: how points are evaluated, where that may change their last bits.
        recall: finds programs that need not be traced again, for a process that may use it.
        store: the folder in which is noted what its programs read while they ran.
    """

    experiment: Experiment
    method: str
    recall: Recall | None = None
    store: Path | None = None
    _programs: dict[Any, str] = field(default_factory=dict)
    _around: dict[str, str] = field(default_factory=dict)

    def __call__(self, cfg: Any, seed: int, precision: str) -> str:
        """The name of what `compute` gives for this config and seed."""
        return self.of(cfg, precision)(seed)

    def of(self, cfg: Any, precision: str) -> Callable[[int], str]:
        """The names of what `compute` gives for this config, by the seed."""
        known = (precision, schema.structure(cfg))
        if known not in self._programs:
            machine.prepare(precision)
            self._around[precision] = digest([surroundings(), precision, self.method])
            self._programs[known] = self._program(cfg, [known, self._around[precision]])
        inputs = schema.traced_values(cfg)
        return named_by_seed([self._programs[known], self._around[precision], inputs])

    def _program(self, cfg: Any, known: Any) -> str:
        read = read_while_running(self.store)

        def traced() -> str:
            return program(self.experiment, cfg, read)

        return traced() if self.recall is None else self.recall.program([known, read], traced)


def program(experiment: Experiment, cfg: Any, read: Mapping[str, str]) -> str:
    """The name of all that `compute` does with values of this config's structure.

    What cannot be traced is named by its sources: it fails, and is tried again when they change.
    `read` are the files that its programs read while they ran, each with its stamp.
    """
    compute = experiment.module.compute
    try:
        lowered = jax.jit(compute).lower(schema.arrays(cfg), jax.random.key(0))
    except Exception:
        return digest(["untraceable", *_sources(experiment)])
    text = lowered.as_text()
    unsaid = [name for name in _CALL.findall(text) if not _JAX_CALLS.match(name)]
    outside = [*_sources(experiment), sorted(read.items())] if unsaid else []
    return digest([text, str(lowered.out_tree), *outside])


def surroundings() -> dict[str, Any]:
    """What may change a value though the program's text is the same."""
    settings = {
        name: str(value)
        for name, value in jax.config.values.items()
        if not any(part in name for part in _SILENT)
    }
    return {
        "versions": provenance.versions(_VERSIONS),
        "device": _device(),
        "settings": settings,
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _device() -> str:
    """The device and, beside a CPU's, its compiler: a package of its own with its own version."""
    from jax.extend.backend import get_backend

    try:
        kind, backend = jax.devices()[0].device_kind, get_backend()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        if not asked:
            raise
        raise BadInput(
            f"JAX_PLATFORMS is set to '{asked}', and jax finds no such device here; "
            "allowed: cpu, or nothing"
        ) from error
    return kind if backend.platform == "cpu" else f"{kind}, {backend.platform_version}"


def sources(experiment: Experiment) -> str:
    """The name of all code that `compute` may run, but for that of installed packages."""
    return digest([*_sources(experiment)])


def _sources(experiment: Experiment) -> Iterator[str]:
    """What the text of a program with calls to the outside does not say: all code that it may run.

    The parts of an experiment that only look at results are left out, and so are comments.
    """
    yield json.dumps(provenance.versions())
    library = (file for wing in _COMPUTING_WINGS for file in (LIBRARY / wing).rglob("*.py"))
    yield from map(_code, sorted(library))
    reached = _reached(experiment.file) | _beside(experiment)
    yield from sorted(map(_code, reached))
    if any(word in path.read_bytes() for path in reached for word in (b"environ", b"getenv")):
        yield json.dumps(sorted(os.environ.items()))


def _beside(experiment: Experiment) -> set[Path]:
    """All code below an experiment's folder but other experiments, however it may be loaded."""
    folder, configs = experiment.file.parent, experiment.config_file.parent
    found = {path for path in folder.rglob("*.py") if path != experiment.file}
    return {
        path
        for path in found
        if path.parent != folder or not (configs / f"{path.stem}.yaml").is_file()
    }


def _reached(file: Path) -> set[Path]:
    """A file and, from import to import, those of no installed package that it reaches."""
    found, todo = set[Path](), [file]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += filter(_is_own, map(Path, _imported_files(path)))
    return found


def _imported_files(path: Path) -> Iterator[str]:
    """The files of the modules that a file imports, at its top or in a function."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            whole = ".".join(filter(None, [_above(path, node.level), node.module]))
            names = [whole, *(f"{whole}.{name}" for name in names)]
        for name in names:
            if file := getattr(sys.modules.get(name), "__file__", None):
                yield file


def _above(path: Path, level: int) -> str:
    """The package that so many dots stand for in a file; empty for none."""
    modules = list(sys.modules.items())
    own = (name for name, module in modules if getattr(module, "__file__", None) == str(path))
    parts = next(own, "").split(".") if level else []
    up = level - 1 if path.stem == "__init__" else level
    return ".".join(parts[: len(parts) - up])


@functools.cache
def _is_own(path: Path) -> bool:
    foreign = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")}
    return not ({LIBRARY, *foreign} & {*path.parents}) and path.suffix == ".py"


def _code(path: Path) -> str:
    """The name of what a source file does when `compute` is called."""
    held = path.read_bytes()
    try:
        tree = ast.parse(held)
    except (SyntaxError, ValueError):  # a draft beside the experiment
        return hashlib.sha256(held).hexdigest()
    tree.body = [node for node in tree.body if not _names(node) & {*_LOOKING}]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            del body[0]  # of a function with one, and of the same without, the code is one
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _names(node: Any) -> set[str]:
    """What a statement at the top of a file defines."""
    targets = [getattr(node, "target", None), *getattr(node, "targets", ())]
    return {getattr(node, "name", ""), *(getattr(target, "id", "") for target in targets)}


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def named_by_seed(content: list[Any]) -> Callable[[int], str]:
    """The names of plain values and one more number after them."""
    begun = hashlib.sha256(json.dumps(content, sort_keys=True, default=str)[:-1].encode())

    def name(number: int) -> str:
        whole = begun.copy()
        whole.update(f", {number}]".encode())
        return whole.hexdigest()[:32]

    return name


def digest(content: Any) -> str:
    """The name of plain values, 32 hexadecimal digits; floats count to their last bit."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
