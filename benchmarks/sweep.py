"""What a point of a sweep costs: this suite's launcher beside Hydra's basic one, in one run.

    python benchmarks/sweep.py > benchmarks/sweep.md

Prints what the record shows: a point's time beside that of Hydra's basic launcher, and time and
memory of 1000 and of 100,000 points that do nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
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


# Run beside a store: the seconds until all that is finished is known by name.
KNOWN = """
import sys, time
from pathlib import Path
from gradlab.running.store import Store

begun = time.perf_counter()
Store(Path(sys.argv[1])).keys()
print(time.perf_counter() - begun)
"""


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def known(store: Path) -> float:
    """The seconds in which a process knows what is finished."""
    done = subprocess.run([sys.executable, "-c", KNOWN, store], capture_output=True, check=True)
    return float(done.stdout)


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
        begun = time.time()
        many = cost(folder, "experiments/nothing.py", "--multirun", "seed=range(0,100000)")
        store = folder / "results" / ".store" / "nothing"
        # Those of the short sweep are there too, and older.
        written = (path.stat().st_mtime for path in store.glob("*.nc"))
        first = min(when for when in written if when > begun) - begun
        finished = known(store)
    record(Cost(basic, basic_cpu, longer.megabytes), ours, again, nothing, many)
    print(f"\nOf the 100,000 the first 2000 were computed and on disk after {first:.1f} s;")
    print(f"what is finished of all is known in {finished:.2f} s.")


def record(basic: Cost, ours: Cost, again: Cost, nothing: Cost, many: Cost) -> None:
    """Print the tables; `basic` is what Hydra's launcher takes a point."""
    print("# What a point of a sweep costs\n")
    print("One run of `python benchmarks/sweep.py`: a tanh chain and its gradients, depth 50,")
    print("width 100, float64; 10 values of sigma_w by 100 seeds, from the start to the figure.")
    print(f"jax {version('jax')}, {os.cpu_count()} processors, load {os.getloadavg()[2]:.1f}.\n")
    print("| a point | wall, ms | processor, ms | memory, MB |\n|---|---|---|---|")
    rows = (("Hydra's basic launcher, `jit` in the job", basic), ("gradlab, 1000 points", ours))
    for (label, one), points in zip(rows, (1, 1000), strict=True):
        wall, cpu = (1e3 * seconds / points for seconds in one[:2])
        print(f"| {label} | {wall:.1f} | {cpu:.1f} | {one.megabytes:.0f} |")
    wall, cpu = (1e3 * basic[at] / ours[at] for at in (0, 1))
    print(f"| ratio | {wall:.0f} | {cpu:.0f} | |\n")
    print("| in all | wall, s | processor, s | memory, MB |\n|---|---|---|---|")
    rows = (
        ("the same 1000 again: nothing to compute", again),
        ("1000 points that do nothing", nothing),
        ("100,000 points that do nothing", many),
    )
    for label, one in rows:
        print(f"| {label} | {one.seconds:.1f} | {one.cpu_seconds:.1f} | {one.megabytes:.0f} |")


if __name__ == "__main__":
    main()
