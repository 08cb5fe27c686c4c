"""One run, from a command line to its files and its exit status.

Words that were typed enter; a run's folder leaves, every file of it whole or not at all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        *(
            "command_line",
            "composition",
            "console",
            "grammar",
            "identity",
            "interrupts",
            "machine",
            "naming",
        ),
        *("provenance", "recall", "refusals", "settings", "single", "store", "usage"),
    ],
)
