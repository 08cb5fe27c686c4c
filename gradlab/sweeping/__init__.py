"""Many runs as one object: points, compiled programs, a store that survives kills, one dataset.

A multirun's overrides enter; a sweep's folder leaves, with what each point gave along named axes.

The words of this wing:
    point: one single run of a sweep: its config, seed and precision (`points.Point`).
    index: where a point is along each swept axis, as an index into an array.
    structure: what points must share to be one compiled program (`points.structure`).
    chunk: points of one structure that are computed together and whose results are one file.
    store: the files of an experiment's finished points, of all its runs (`running.store.Store`).
    element: one task of a job array, to which some of the chunks are dealt (`cluster.Element`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        "cluster",
        "from_python",
        "gathered",
        "grid",
        "launchers",
        "lines",
        "join",
        "outcomes",
        "multirun",
        "overview",
        "points",
        "queues",
        "scales",
        "strip",
        "programs",
        "summary",
        "sweep",
    ],
)
