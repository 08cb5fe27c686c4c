"""What an experiment file is given: typed keys, labelled arrays, claims, figures, faults.

A config enters, a dataset that is read back from disk leaves, and from it figures and claims. It
knows no experiment by name, no command line and no sweep.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        "claim",
        "dataset",
        "estimate",
        "fault",
        "figures",
        "files",
        "fileset",
        "grid",
        "headline",
        "lesson",
        "loading",
        "schema",
    ],
)
