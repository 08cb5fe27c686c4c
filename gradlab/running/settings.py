"""What every run is told besides its experiment's own keys; values are in `configs/base.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradlab.experiment import schema
from gradlab.experiment.schema import Entry

METHODS = ("auto", "each", "map", "vmap")
CLUSTERS = ("none", "debug", "local", "slurm")


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
        "bit; many by jax.lax.map; many by jax.vmap; auto is each on a CPU, else vmap",
        choices=METHODS,
    )
    batch: int = schema.key("points in one vmap, 0 for as many as memory allows", at_least=0)
    chunk: int = schema.key("points in one chunk file, 0 for a fiftieth of the sweep", at_least=0)
    resume: bool = schema.key("keep the points that were finished before")
    fail_fast: bool = schema.key("stop at the first point that raises")


@schema.config
class ClusterKeys:
    """The keys of `cluster`: where the points of a `--multirun` are computed."""

    kind: str = schema.key(
        "where a sweep is computed: in this process, or by submitit in this process (debug), in "
        "processes of this machine, or as a Slurm job array; cluster=KIND says the same",
        choices=CLUSTERS,
    )
    partition: str | None = schema.key("Slurm partition")
    minutes: int = schema.key("time limit of one array element", at_least=1)
    memory: float = schema.key("memory of one array element in GB", above=0)
    cpus: int = schema.key("processors of one array element", at_least=1)
    gpus: int = schema.key("GPUs of one array element", at_least=0)
    elements: int = schema.key("array elements, among which the chunks are dealt", at_least=1)
    wait: bool = schema.key("wait and collect; false: submit and leave")
    tries: int = schema.key("times that a lost array element is started again", at_least=0)


@dataclass(kw_only=True)
class Settings(RunKeys):
    """All of them, checked."""

    sweep: SweepKeys
    cluster: ClusterKeys


NODES: dict[str, type] = {"sweep": SweepKeys, "cluster": ClusterKeys}

# Keys that say where or how, not what: they do not tell one result from another.
NOT_NAMED = frozenset(
    (
        *("results", "redraw", "cluster", "sweep.chunk", "sweep.resume", "sweep.fail_fast"),
        *(f"cluster.{entry.name}" for entry in schema.entries(ClusterKeys)),
    )
)

# What a key was called once, and is called now. Asked only about a key that is not known.
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
    "cluster_cpus": "cluster.cpus",
    "cluster_gpus": "cluster.gpus",
    "cluster_memory": "cluster.memory",
    "cluster_minutes": "cluster.minutes",
    "cluster_partition": "cluster.partition",
    "cluster_tries": "cluster.tries",
    "cluster_wait": "cluster.wait",
    "cluster_width": "cluster.elements",
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
        name: schema.read(keys, values[name], name) for name, keys in NODES.items()
    }
    return Settings(**vars(schema.read(RunKeys, shared)), **nodes)
