"""A project with a small experiment that draws, imports a helper and reads a file."""

import sys
from pathlib import Path

import pytest

from tests.toys import shared_configs

EXPERIMENT = '''"""What is twice the sine?"""

from pathlib import Path

import helper
import numpy

import gradlab as gl
from gradlab.lazy import jax, jnp

DATA = numpy.loadtxt(Path(__file__).with_name("data.txt"))


@gl.config
class Config:
    w: gl.Floats
    depth: int
    gain: float = gl.key("a factor")


def compute(cfg, key):
    phi = helper.sine
    noise = jax.random.normal(key, (cfg.depth,))
    return {
        "twice": gl.named(helper.FACTOR * phi(cfg.w) * cfg.gain, "w", long_name="twice the sine"),
        "noise": gl.named(noise + DATA, "draw", units="m"),
        "side": gl.named(["left", "right"], "side"),
    }


def figure(data):
    drawn, (axes,) = gl.figures.panels()
    axes.plot(data.w, data.twice)
    axes.set_xlabel("w")
    axes.set_ylabel("twice the sine")
    return drawn


def headline(data):
    yield gl.headline.mean("noise", data.noise, "m", law=2.0)


def claims(data):
    yield gl.Claim("it is small", float(abs(data.twice).max()), 9.0, {}, "sine", "<=")


FAULTS = {}

if __name__ == "__main__":
    gl.run(__file__)
'''
HELPER = '''"""Beside it."""

from gradlab.lazy import jnp

FACTOR = 2.0


def sine(x):
    """The sine."""
    return jnp.sin(x)
'''
VALUES = """defaults: [schema, base, _self_, {scale: full}]
w: [0.5, 1.0]
depth: 3
gain: 1.0
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one experiment that draws, imports a helper and reads a file."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (tmp_path / "memory").mkdir()  # by now: a folder of imports that changes is looked at anew
    (folder / "twice.py").write_text(EXPERIMENT)
    (folder / "helper.py").write_text(HELPER)
    (folder / "data.txt").write_text("1.0\n2.0\n3.0\n")
    shared_configs(tmp_path)
    (tmp_path / "configs" / "twice.yaml").write_text(VALUES)
    # As Python does for a program.
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "helper", raising=False)  # another test's
    return tmp_path
