"""What claims are worth: how often chance breaks one, and which faults they notice.

Experiments enter, each with its claims; records leave: `seeds` of runs on seeds that nobody has
seen, `power` of runs in which one function of the library is wrong. No experiment has a line for
it. `python -m gradlab.calibration` writes them into the folder of results, where the page finds
them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    ["mutations", "variants", "outcomes", "power", "seeds", "rehearsal", "records", "workers"],
)
