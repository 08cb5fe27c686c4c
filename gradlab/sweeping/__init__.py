"""Many runs as one object: points, compiled programs, a store that survives kills, one dataset.

A multirun's overrides enter; a sweep's folder leaves, with what each point gave along named axes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["cluster", "join", "multirun", "overview", "points", "programs", "store", "sweep"]
)
