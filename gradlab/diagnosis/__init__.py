"""Measurement held against theory for a model that somebody brings: what is wrong, and what helps.

A model, a batch and a loss enter; they become a straight line of operations (`program`), whose
parts are read off it (`anatomy`) and measured in one compiled pass (`measures`). Checks hold the
numbers against laws; what chance does not explain leaves as findings, each with its cause and a
remedy that was measured to help.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "anatomy",
        "changes",
        "door",
        "examination",
        "facts",
        "laws",
        "measures",
        "program",
        "watching",
    ],
    submod_attrs={
        "audit": ["Audit", "audit"],
        "coordinates": ["CoordinateCheck", "coordinate_check"],
    },
)
