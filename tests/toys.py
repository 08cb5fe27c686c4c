"""Throw-away projects for tests of runs and sweeps, and their command line in this process."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import xarray as xr

from gradlab.experiment import dataset, figures
from gradlab.running import command_line

PROJECT = Path(__file__).parent.parent
DRAW = figures.draw

# A chaotic network: one different bit anywhere is a difference of order one some layers later.
CHAOS = '''"""How far apart do two bits end?

A tanh network with weights of scale 3.
"""

import signal
import time

import gradlab as gl
from gradlab.lazy import jax, jnp, np


@gl.config
class Config:
    activation: str
    depth: int
    width: int
    sigma_w: float
    w: gl.Floats
    fail: str = gl.key("the point that raises, as text")


def told(fail, sigma_w):
    if fail == "sleep not, but interrupt":
        signal.raise_signal(signal.SIGINT)
        return np.asarray(sigma_w)
    time.sleep(float(fail.partition("sleep ")[2] or 0))
    if fail == f"value {float(sigma_w):g}":
        raise ValueError("this value raises")
    return np.asarray(sigma_w)


def compute(cfg, key):
    if cfg.fail == f"depth {cfg.depth} {cfg.activation} {cfg.width}":
        raise ValueError("this structure raises")
    phi = gl.activations.PHI[cfg.activation]
    sigma_w = cfg.sigma_w
    if cfg.fail.startswith(("value", "sleep")):
        shape = jax.ShapeDtypeStruct((), sigma_w.dtype)
        tell = lambda s: told(cfg.fail, s)
        sigma_w = jax.pure_callback(tell, shape, sigma_w, vmap_method="sequential")
    key_W, key_x = jax.random.split(key)
    W = jax.random.normal(key_W, (cfg.depth, cfg.width, cfg.width)) * sigma_w / cfg.width**0.5

    def step(x, W):
        x = phi(W @ x)
        return x, x[0]

    x, first = jax.lax.scan(step, jax.random.normal(key_x, (cfg.width,)), W)
    return {
        "first": gl.named(first, "layer", long_name="first neuron"),
        "x": gl.named(x, "neuron"),
        "square": gl.named(cfg.w**2, "w"),
        "length": gl.named(jnp.mean(x**2)),
    }


def figure(data):
    drawn, (axes,) = gl.figures.panels()
    axes.plot(data.w, data.square, "o")
    axes.set_xlabel("w")
    axes.set_ylabel("w squared")
    return drawn


def headline(data):
    yield gl.Headline("length", data.length, law=0.5)


def claims(data):
    yield gl.Claim("no neuron leaves [-1, 1]", abs(data.x).max(), 1.0, {}, "tanh", "<=")
    yield gl.Claim("w squared is a square", data.square[0], data.w[0] ** 2, {"rounding": 1e-6}, "")


FAULTS = {}

if __name__ == "__main__":
    gl.run(__file__)
'''

VALUES = """defaults:
  - schema
  - base
  - _self_
  - scale: full
  - optional scale/chaos: ${scale}

activation: tanh
depth: 6
width: 5
sigma_w: 3.0
w: [0.5]
fail: nothing
"""

SMOKE = """# @package _global_
depth: 3
"""

PRESET = """# @package _global_
experiment: chaos
sigma_w: 2.0
"""


def shared_configs(project: Path) -> None:
    """Put into a project what every experiment shares: base.yaml and the config groups."""
    source = PROJECT / "configs"
    for path in [source / "base.yaml", *source.glob("*/*.yaml")]:
        copy = project / path.relative_to(PROJECT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


class Outcome(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


def typed(file: Path, *arguments: str) -> Outcome:
    """The command line `experiments/NAME.py ARGUMENTS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv, x64 = sys.argv, jax.dtypes.canonicalize_dtype(float) == "float64"
    sys.argv = [f"experiments/{file.name}", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            command_line.run(str(file))
    except SystemExit as end:
        return Outcome(int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv = argv
        jax.config.update("jax_enable_x64", x64)
    raise AssertionError("a run ends with an exit status")


class Toy:
    """A project with one experiment, `chaos`."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.file = project / "experiments" / "chaos.py"
        self.file.parent.mkdir(parents=True)
        self.file.write_text(CHAOS)
        shared_configs(project)
        (project / "configs" / "chaos.yaml").write_text(VALUES)
        (project / "configs" / "scale" / "chaos").mkdir()
        (project / "configs" / "scale" / "chaos" / "smoke.yaml").write_text(SMOKE)
        (project / "configs" / "experiment" / "calm.yaml").write_text(PRESET)

    @property
    def results(self) -> Path:
        return self.project / "results" / "chaos"

    def run(self, *arguments: str) -> Outcome:
        """The command line `chaos.py ARGUMENTS`, in this process."""
        sys.modules.pop("gradlab_experiment_chaos", None)  # a test may have changed the file
        return typed(self.file, *arguments)

    def sweep(self, *arguments: str) -> Outcome:
        return self.run("--multirun", *arguments)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """The same command line in a process of its own, with a copy of the library."""
        library = self.project / "copy"
        if not library.exists():
            for package in ("gradlab", "hydra_plugins"):
                shutil.copytree(PROJECT / package, library / package)
        return subprocess.Popen(
            [sys.executable, "experiments/chaos.py", *arguments],
            cwd=self.project,
            env=os.environ | {"PYTHONPATH": str(library)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def data(self, folder: str = "") -> xr.Dataset:
        return dataset.read(self.results / folder / "data.nc")

    def files(self, folder: str = "") -> dict[str, bytes]:
        """The final files whose bytes do not depend on when they were made."""
        names = ("data.nc", "claims.json", "figure.png", "figure.pdf", "figure.svg")
        return {name: (self.results / folder / name).read_bytes() for name in names}

    def chunks(self) -> dict[str, int]:
        """File of the store to its time of writing."""
        return {path.name: path.stat().st_mtime_ns for path in self.store.glob("*.nc")}

    @property
    def store(self) -> Path:
        """The folder of the finished points."""
        return self.project / "results" / ".store" / "chaos"


@contextlib.contextmanager
def quickly_compiled() -> Iterator[None]:
    """XLA without most of its optimisations, for a program that runs once."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    """A project of its own; figures are made, but not rendered, which takes most of the time."""
    # What a test compiles is compiled there and then, and leaves nothing in anybody's home.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of what it starts

    def draw(
        figure: Callable[[xr.Dataset], figures.Figure], data: xr.Dataset, _caption: str = ""
    ) -> dict[str, bytes]:
        drawn = figure(data)
        titles = [axes.get_title(loc="left") for axes in drawn.axes]
        return dict.fromkeys(("png", "pdf", "svg"), repr(titles).encode())

    monkeypatch.setattr("gradlab.experiment.figures.draw", draw)
    with quickly_compiled():
        yield Toy(tmp_path)


@pytest.fixture
def rendering_toy(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """The same with its figures rendered."""
    monkeypatch.setattr("gradlab.experiment.figures.draw", DRAW)
    return toy
