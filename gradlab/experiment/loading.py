"""An experiment is a question in two files, found by name and evaluated one way.

`experiments/<name>.py` holds `Config`, `compute`, `figure`, `claims` and `FAULTS`;
`configs/<name>.yaml` holds the values. There is no registry.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gradlab.errors import BadInput
from gradlab.experiment import schema

if TYPE_CHECKING:
    import xarray as xr

    from gradlab.experiment.claim import Claim
    from gradlab.experiment.headline import Headline

Fault = Callable[["Experiment"], contextlib.AbstractContextManager[None]]

_PACKAGE = Path(__file__).resolve().parent.parent
# A wheel carries the published experiments and configs; a checkout has them beside the library.
PACKED = _PACKAGE / "published"
PUBLISHED = PACKED if PACKED.is_dir() else _PACKAGE.parent

_PARTS = ("Config", "compute", "figure", "claims")

# A sweep labels every point.
_version = functools.cache(version)


@dataclass(frozen=True)
class Experiment:
    """A loaded experiment file and the project folder that it stands in."""

    name: str
    project: Path
    module: ModuleType

    @property
    def question(self) -> str:
        """The first line of its docstring."""
        return (self.module.__doc__ or self.name).strip().splitlines()[0]

    @property
    def source(self) -> str:
        """The rest of its docstring: where the question comes from."""
        return "\n".join((self.module.__doc__ or "").strip().splitlines()[1:]).strip()

    @property
    def file(self) -> Path:
        """Its question."""
        return self.project / "experiments" / f"{self.name}.py"

    @property
    def config_file(self) -> Path:
        """Its values."""
        return self.project / "configs" / f"{self.name}.yaml"

    @property
    def home(self) -> Path:
        """The folder that a relative folder of results starts from."""
        return home(self.project)

    @property
    def command(self) -> tuple[str, ...]:
        """The words that run it."""
        return command(self.project, self.name)

    @property
    def faults(self) -> dict[str, Fault]:
        """Planted faults, each of which must break a claim."""
        return getattr(self.module, "FAULTS", {})

    @property
    def harmless(self) -> dict[str, str]:
        """Why a mutation (gradlab.calibration), or any of a function, cannot matter to a claim."""
        return getattr(self.module, "HARMLESS", {})


def load(file: str | Path) -> Experiment:
    """The experiment in a file; the running program itself is not executed a second time.

    Raises:
        BadInput: the file is missing or lacks a part that an experiment must have.
    """
    path = _existing(file)
    return _complete(path, _running(path) or _imported(path))


def load_anew(file: str | Path) -> Experiment:
    """The experiment in a file as it is now, and its helpers beside it, whatever was loaded.

    Raises:
        BadInput: the file is missing or lacks a part that an experiment must have.
    """
    path = _existing(file)
    # All are found first: a package without a file asks the one above it where it is.
    below = [name for name, module in [*sys.modules.items()] if _is_below(module, path.parent)]
    for name in {*below, _module_name(path)} & sys.modules.keys() - {"__main__"}:
        del sys.modules[name]
    if str(path.parent) not in sys.path:  # where Python itself looks first for a program
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    kept = sys.dont_write_bytecode
    # Bytecode of an older source may have the same size and second.
    sys.dont_write_bytecode = True
    try:
        return _complete(path, _imported(path))
    finally:
        sys.dont_write_bytecode = kept


def _is_below(module: ModuleType, folder: Path) -> bool:
    """Whether a module comes from below a folder; a package without a file has folders alone."""
    try:
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    except Exception:  # a module that makes its parts up may raise anything
        return False
    return any(folder in Path(str(place)).parents for place in places)


def _existing(file: str | Path) -> Path:
    path = Path(file).resolve()
    if not path.is_file():
        raise BadInput(f"experiment '{path}' does not exist; allowed: a file experiments/<name>.py")
    return path


def _complete(path: Path, module: ModuleType) -> Experiment:
    missing = [part for part in _PARTS if not hasattr(module, part)]
    if missing:
        raise BadInput(
            f"experiment '{path.stem}' lacks {', '.join(missing)}; "
            f"allowed: a file that defines {', '.join(_PARTS)}"
        )
    return Experiment(path.stem, path.parent.parent, module)


def discover(project: Path) -> list[Path]:
    """The experiment files of a project, by name."""
    return sorted(
        path for path in (project / "experiments").glob("*.py") if not path.name.startswith("_")
    )


def projects(here: Path) -> list[Path]:
    """The projects that a name is looked for in: from a folder upwards, then the published one."""
    near = [folder for folder in (here, *here.parents) if (folder / "experiments").is_dir()]
    return [*near, *({PUBLISHED} - {*near})]


def known(here: Path) -> dict[str, Path]:
    """Each experiment that can be run from a folder by its name, the nearest of those of one."""
    near = projects(here)
    nearest = (near[0], PUBLISHED) if near[0] != PUBLISHED else (PUBLISHED,)
    return {path.stem: path for project in reversed(nearest) for path in discover(project)}


def find(name: str | Path, here: Path) -> Path:
    """The file of an experiment, given by its name or as a file.

    Raises:
        BadInput: there is no experiment of that name.
    """
    if not isinstance(name, str | Path):
        raise BadInput(f"experiment is {name!r}; allowed: its name, or its file")
    if Path(name).suffix == ".py":
        return _existing(name)
    for project in projects(here):
        if (file := project / "experiments" / f"{name}.py").is_file():
            return file
    raise BadInput(schema.unknown("experiment", str(name), sorted(known(here))))


def described(file: Path) -> tuple[str, str]:
    """The question and the source in a file's docstring, read without executing the file."""
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError) as error:
        return file.stem, f"{file.name} cannot be read as Python: {error}"
    question, _, source = text.partition("\n")
    return question.strip() or file.stem, source.strip()


def home(project: Path) -> Path:
    """Where a project's results belong: in it, or in the current folder if it is the package's."""
    return Path.cwd() if project == PACKED else project


def command(project: Path, name: str) -> tuple[str, ...]:
    """The words that run an experiment of a project."""
    if project == PACKED:
        return ("gradlab", "run", name)
    return ("python", f"experiments/{name}.py")


def _running(path: Path) -> ModuleType | None:
    main = sys.modules.get("__main__")
    return main if main and getattr(main, "__file__", None) and _same(main, path) else None


def _same(module: ModuleType, path: Path) -> bool:
    return Path(str(module.__file__)).resolve() == path


def _module_name(path: Path) -> str:
    return f"gradlab_experiment_{path.stem}"


def _imported(path: Path) -> ModuleType:
    name = _module_name(path)
    if name in sys.modules and _same(sys.modules[name], path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise BadInput(f"experiment '{path}' is not Python; allowed: experiments/<name>.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations of a dataclass are resolved in its module
    try:
        # Not by the loader, which would take bytecode.
        exec(_compiled(path), vars(module))
    except ImportError as error:
        del sys.modules[name]
        raise BadInput(
            f"experiment '{path}' imports what cannot be imported ({error}); "
            "allowed: packages that are installed, and files beside it"
        ) from error
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _compiled(path: Path) -> Any:
    try:
        return compile(path.read_bytes(), path, "exec")
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadInput(
            f"experiment '{path}' cannot be read ({said}{where}); allowed: Python"
        ) from error


def evaluate(experiment: Experiment, cfg: Any, seed: int) -> xr.Dataset:
    """The dataset of one run, in memory, with all that is needed to draw and judge it."""
    return label(experiment, cfg, seed, results(experiment, cfg, seed))


def results(experiment: Experiment, cfg: Any, seed: int) -> dict[str, Any]:
    """The labelled arrays that `compute` returns.

    Raises:
        BadInput: it does with traced values what JAX cannot trace, needs more memory than there
            is, or an axis would have one label twice.
    """
    import jax

    from gradlab.experiment import dataset, memory

    given = schema.arrays(cfg), jax.random.key(seed)
    try:
        lowered = jax.jit(experiment.module.compute).lower(*given)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
        raise BadInput(
            f"compute of '{experiment.name}' uses numpy, float() or a Python branch on a value "
            "that jax traces; allowed: jax.numpy, or jax.pure_callback around what must be numpy"
        ) from error
    dataset.check_returned(lowered.out_info, schema.values(cfg))
    program = lowered.compile()
    memory.check(experiment.name, program, jax.devices()[0])
    arrays: dict[str, Any] = program(*given)
    return arrays


def label(experiment: Experiment, cfg: Any, seed: int, arrays: dict[str, Any]) -> xr.Dataset:
    """The dataset of the arrays that `compute` returned, with its provenance."""
    from gradlab.experiment import dataset

    given = schema.values(cfg)
    data = dataset.assemble(arrays, given)
    data.attrs |= {
        "experiment": experiment.name,
        "question": experiment.question,
        "seed": seed,
        "config": json.dumps(given),
        "gradlab": _version("gradlab"),
        "jax": _version("jax"),
    }
    return data


def _listed(experiment: Experiment, part: str, told: Any) -> list[Any]:
    """What a part of an experiment yields."""
    if not isinstance(told, Iterable):
        raise BadInput(
            f"{part} of '{experiment.name}' returns a {type(told).__name__}; "
            "allowed: a function that yields one after the other"
        )
    return list(told)


def judge(experiment: Experiment, data: xr.Dataset, part: str = "claims") -> list[Claim]:
    """The claims of the experiment about a dataset; none where the file has no such part.

    Raises:
        BadInput: something else than a claim is among them.
    """
    from gradlab.experiment.claim import Claim

    claims = _listed(experiment, part, getattr(experiment.module, part, lambda _: ())(data))
    for claim in claims:
        if not isinstance(claim, Claim):
            raise BadInput(
                f"{part} of '{experiment.name}' yields a {type(claim).__name__}; "
                "allowed: gl.Claim, or what the functions of gl.claim return"
            )
    return claims


def headline(experiment: Experiment, data: xr.Dataset) -> list[Headline]:
    """The headline numbers of a run; none where the experiment names none.

    Raises:
        BadInput: there are more than four, two of one name, or something else among them.
    """
    from gradlab.experiment.headline import MOST, Headline

    written: Callable[[xr.Dataset], Iterable[Headline]] | None = getattr(
        experiment.module, "headline", None
    )
    numbers = _listed(experiment, "headline", written(data)) if written else []
    for number in numbers:
        if not isinstance(number, Headline):
            raise BadInput(
                f"headline of '{experiment.name}' yields a {type(number).__name__}; "
                "allowed: gl.Headline, or what the functions of gl.headline return"
            )
    names = [number.name for number in numbers]
    if len(numbers) > MOST or len({*names}) < len(names):
        raise BadInput(
            f"headline of '{experiment.name}' yields {', '.join(names)}; "
            f"allowed: at most {MOST} numbers, each of another name"
        )
    return numbers


def caption(experiment: Experiment, data: xr.Dataset) -> str:
    """A sentence or two under the figure, with numbers of the dataset; empty if it offers none.

    Raises:
        BadInput: it is no text.
    """
    written: Callable[[xr.Dataset], Any] | None = getattr(experiment.module, "caption", None)
    text = written(data) if written else ""
    if not isinstance(text, str):
        raise BadInput(
            f"caption of '{experiment.name}' returns a {type(text).__name__}; allowed: a text"
        )
    return " ".join(text.split())
