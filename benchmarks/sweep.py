"""What a point of a sweep costs: this suite's launcher beside Hydra's basic one, in one run.

    python benchmarks/sweep.py

Prints wall time a point, its ratio, the time of 1000 and of 100,000 points that do nothing, and
memory; the record of a run is benchmarks/sweep.md.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parent.parent

# The same network in both programs: a random tanh chain and its gradients, layer by layer.
NETWORK = """
def gradients(sigma_w, key, depth, width):
    key_W, key_x = jax.random.split(key)
    W = jax.random.normal(key_W, (depth, width, width)) * sigma_w / width**0.5

    def forward(x, W):
        x = jnp.tanh(W @ x)
        return x, x

    last, x = jax.lax.scan(forward, jax.random.normal(key_x, (width,)), W)

    def backward(delta, layer):
        W, x = layer
        delta = W.T @ ((1 - x**2) * delta)
        return delta, jnp.log(jnp.mean(delta**2))

    return jax.lax.scan(backward, last, (W, x), reverse=True)[1]
"""

EXPERIMENT = f'''"""How does a gradient change from layer to layer?"""

import gradlab as gl
from gradlab.lazy import jax, jnp

{NETWORK}

@gl.config
class Config:
    depth: int
    width: int
    sigma_w: float


def compute(cfg, key):
    return {{"log_gradient": gl.named(gradients(cfg.sigma_w, key, cfg.depth, cfg.width), "layer")}}


def figure(data):
    drawn, (axes,) = gl.figures.panels()
    axes.plot(data.layer, data.log_gradient)
    return drawn


def claims(data):
    yield gl.Claim("no gradient is 0", data.log_gradient.min(), -1e3, {{}}, "", ">=")


FAULTS = {{}}

if __name__ == "__main__":
    gl.run(__file__)
'''

VALUES = "defaults: [schema, base, _self_, {scale: null}]\ndepth: 50\nwidth: 100\nsigma_w: 1.5\n"

NOTHING = '''"""What does nothing cost?"""

import gradlab as gl


@gl.config
class Config:
    sigma_w: float


def compute(cfg, key):
    return {"sigma_w": gl.named(cfg.sigma_w)}


def figure(data):
    return gl.figures.panels()[0]


def claims(data):
    yield gl.Claim("it comes back", data.length, data.length, {}, "")


FAULTS = {}

if __name__ == "__main__":
    gl.run(__file__)
'''.replace('"sigma_w": gl', '"length": gl')

BASIC = f"""
import hydra
import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

{NETWORK}

@hydra.main(config_path=None, config_name="config", version_base="1.3")
def main(cfg):
    @jax.jit
    def compute(sigma_w, key):
        return gradients(sigma_w, key, cfg.depth, cfg.width)

    np.save("log_gradient.npy", compute(cfg.sigma_w, jax.random.key(cfg.seed)))


from hydra.core.config_store import ConfigStore

values = {{"depth": 50, "width": 100, "sigma_w": 1.5, "seed": 0}}
ConfigStore.instance().store("config", values | {{"hydra": {{"job": {{"chdir": True}}}}}})
main()
"""


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def cost(folder: Path, *command: str) -> Cost:
    """The cost of a command, its children excluded."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")},
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def project(folder: Path) -> None:
    """A project with the two experiments, and the program for Hydra's basic launcher."""
    for part in ("experiments", "configs"):
        (folder / part).mkdir()
    shutil.copy(PROJECT / "configs" / "base.yaml", folder / "configs")
    (folder / "experiments" / "network.py").write_text(EXPERIMENT)
    (folder / "configs" / "network.yaml").write_text(VALUES)
    (folder / "experiments" / "nothing.py").write_text(NOTHING)
    nothing = VALUES.replace("depth: 50\nwidth: 100\n", "")
    (folder / "configs" / "nothing.yaml").write_text(nothing)
    (folder / "basic.py").write_text(BASIC)


def main() -> None:
    """Run and print."""
    sweep = ("--multirun", "sigma_w=range(1.0,2.0,0.1)", "seed=range(0,100)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder)
        # The difference of two lengths leaves the start of the program out, in Hydra's favour.
        few, more = 2, 10
        short = cost(folder, "basic.py", "--multirun", f"seed=range(0,{few})")
        longer = cost(folder, "basic.py", "--multirun", f"seed=range(0,{more})")
        basic = (longer.seconds - short.seconds) / (more - few)
        basic_cpu = (longer.cpu_seconds - short.cpu_seconds) / (more - few)
        ours = cost(folder, "experiments/network.py", *sweep)
        again = cost(folder, "experiments/network.py", *sweep)
        nothing = cost(folder, "experiments/nothing.py", *sweep)
        many = cost(folder, "experiments/nothing.py", "--multirun", "seed=range(0,100000)")
    rows = [
        ("Hydra basic, jit in the job", 1e3 * basic, 1e3 * basic_cpu, longer.megabytes),
        ("gradlab, start to figure", ours.seconds, ours.cpu_seconds, ours.megabytes),
    ]
    print("depth 50, width 100, float64; 10 values of sigma_w by 100 seeds, a point:")
    for label, wall, cpu, memory in rows:
        print(f"  {label:28s}{wall:8.1f} ms wall {cpu:8.1f} ms processor {memory:6.0f} MB")
    wall, cpu = (rows[0][at] / rows[1][at] for at in (1, 2))
    print(f"  {'ratio':28s}{wall:8.0f}         {cpu:8.0f}")
    print("the same again, nothing to compute; 1000 and 100,000 points that do nothing, in all:")
    for label, one in (("again", again), ("1000 nothings", nothing), ("100,000 nothings", many)):
        print(
            f"  {label:28s}{one.seconds:8.1f} s  wall {one.cpu_seconds:8.1f} s  processor "
            f"{one.megabytes:6.0f} MB"
        )


if __name__ == "__main__":
    main()
