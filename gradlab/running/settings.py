"""What every run is told besides its experiment's own keys."""

from gradlab.experiment import schema

METHODS = ("auto", "each", "map", "vmap")
CLUSTERS = ("none", "debug", "local", "slurm")

# Keys that say where or how, not what: they do not tell one result from another.
NOT_NAMED = (
    "results",
    "redraw",
    "resume",
    "fail_fast",
    "sweep_chunk",
    "cluster",
    "cluster_partition",
    "cluster_minutes",
    "cluster_memory",
    "cluster_cpus",
    "cluster_gpus",
    "cluster_width",
    "cluster_wait",
    "cluster_tries",
)


@schema.config
class Settings:
    """The keys of the suite; their values are in `configs/base.yaml`."""

    seed: int = schema.key("seed of all random draws", at_least=0, at_most=2**31 - 1)
    precision: str = schema.key("default float format", choices=("float32", "float64"))
    results: str = schema.key("folder of the results, absolute or from the project's folder")
    redraw: bool = schema.key("draw and judge the data saved before without computing again")
    resume: bool = schema.key("keep the points of a sweep that were finished before")
    fail_fast: bool = schema.key("stop a sweep at the first point that raises")
    sweep_method: str = schema.key(
        "how the points of a sweep are evaluated: each in the single run's own program, bit for "
        "bit; many by jax.lax.map; many by jax.vmap; auto is each on a CPU, else vmap",
        choices=METHODS,
    )
    sweep_batch: int = schema.key("points in one vmap, 0 for as many as memory allows", at_least=0)
    sweep_chunk: int = schema.key(
        "points in one chunk file, 0 for a fiftieth of the sweep", at_least=0
    )
    cluster: str = schema.key(
        "where a sweep is computed: in this process, or by submitit in this process (debug), in "
        "processes of this machine, or as a Slurm job array",
        choices=CLUSTERS,
    )
    cluster_partition: str | None = schema.key("Slurm partition")
    cluster_minutes: int = schema.key("time limit of one array element", at_least=1)
    cluster_memory: float = schema.key("memory of one array element in GB", above=0)
    cluster_cpus: int = schema.key("processors of one array element", at_least=1)
    cluster_gpus: int = schema.key("GPUs of one array element", at_least=0)
    cluster_width: int = schema.key("array elements, among which the chunks are dealt", at_least=1)
    cluster_wait: bool = schema.key("wait and collect; false: submit and leave")
    cluster_tries: int = schema.key("times that a lost array element is started again", at_least=0)
