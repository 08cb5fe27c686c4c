"""What is studied: activations, chains of layers, and the ensembles that weights are drawn from.

Keys, sizes and standard deviations enter; a chain leaves, which is a pytree that maps a state to a
state. Nothing is measured here and nothing predicted.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        *("activations", "chain", "ensembles", "initialisers", "mixing", "networks", "recurrent"),
        "transformer",
    ],
)
