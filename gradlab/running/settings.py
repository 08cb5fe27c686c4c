"""What every run is told besides its experiment's own keys; values are in `configs/base.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.errors import BadInput
from gradlab.experiment import schema
from gradlab.experiment.schema import Entry

# Where else the points of a sweep are computed: Hydra's name for that, and what the suite reads.
LAUNCHER = "hydra/launcher"
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")

METHODS = ("auto", "each", "vmap")


@schema.config
class RunKeys:
    """The keys of any run."""

    seed: int = schema.key("seed of all random draws", at_least=0, at_most=2**31 - 1)
    precision: str = schema.key("default float format", choices=("float32", "float64"))
    results: str = schema.key(
        "folder of the results, absolute or from the project's folder; the current one is that of "
        "experiments that came with an installed gradlab"
    )
    redraw: bool = schema.key("draw and judge the data saved before without computing again")


@schema.config
class SweepKeys:
    """The keys of `sweep`: how the points of a `--multirun` are evaluated."""

    method: str = schema.key(
        "how the points of a sweep are evaluated: each in the single run's own program, bit for "
        "bit; many by jax.vmap; auto is each on a CPU, else vmap",
        choices=METHODS,
    )
    batch: int = schema.key("points in one vmap, 0 for as many as memory allows", at_least=0)
    chunk: int = schema.key("points in one chunk file, 0 for a fiftieth of the sweep", at_least=0)
    resume: bool = schema.key("keep the points that were finished before")
    fail_fast: bool = schema.key("stop at the first point that raises")
    wait: bool = schema.key("wait for another launcher's jobs and collect; false: submit and leave")
    tries: int = schema.key("times that a job that was lost is started again", at_least=0)


@dataclass(kw_only=True)
class Settings(RunKeys):
    """All of them, checked."""

    sweep: SweepKeys


NODES: dict[str, type] = {"sweep": SweepKeys}

# Keys that say where or how, not what: they do not tell one result from another.
NOT_NAMED = frozenset(
    (
        *("results", "redraw", "sweep.chunk", "sweep.resume", "sweep.fail_fast"),
        *("sweep.wait", "sweep.tries"),
    )
)

# What a key was called once, and is called now. Asked only about a key that is not known.
_ONCE = {
    "cpus": "hydra.launcher.cpus_per_task",
    "elements": "hydra.launcher.array_parallelism",
    "gpus": "hydra.launcher.gpus_per_node",
    "kind": LAUNCHER,
    "memory": "hydra.launcher.mem_gb",
    "minutes": "hydra.launcher.timeout_min",
    "partition": "hydra.launcher.partition",
    "tries": "sweep.tries",
    "wait": "sweep.wait",
    "width": "hydra.launcher.array_parallelism",
}
RENAMED = {
    "activations": "activation",
    "dtypes": "dtype",
    "num_seeds": "num_draws",
    "widths": "width",
    "scales": "scale",
    "fail_fast": "sweep.fail_fast",
    "resume": "sweep.resume",
    "sweep_batch": "sweep.batch",
    "sweep_chunk": "sweep.chunk",
    "sweep_method": "sweep.method",
    "cluster": LAUNCHER,
    **{f"cluster{mark}{name}": now for mark in "._" for name, now in _ONCE.items()},
}


def entries() -> dict[str, Entry]:
    """Each key of the suite, as typed on a command line, and what it takes."""
    nodes = {"": RunKeys} | NODES
    return {
        f"{node}.{entry.name}".lstrip("."): entry
        for node, keys in nodes.items()
        for entry in schema.entries(keys)
    }


def read(values: Mapping[str, Any]) -> Settings:
    """The settings that plain values describe.

    Raises:
        BadInput: a key is unknown, missing, of another type, or outside its limits.
    """
    shared = {name: value for name, value in values.items() if name not in NODES}
    nodes: dict[str, Any] = {
        name: schema.read(keys, values.get(name, {}), name) for name, keys in NODES.items()
    }
    read = Settings(**vars(schema.read(RunKeys, shared)), **nodes)
    if not read.results.strip():
        raise BadInput("results is ''; allowed: the name of a folder")
    return read
