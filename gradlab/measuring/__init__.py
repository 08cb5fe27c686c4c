"""What a chain or a model does: Jacobians and their product, spectra, clipping, training.

A chain (or a list of callables, or a model with its loss) and an input enter; exact numbers leave,
with a bound where there is one. No law is known here: a prediction would move the yardstick.
`product_svd` is a closed room (`docs/product_svd.md`); `linearisation`, `blocks` and `forward` are
the fast path of a product (`docs/fast_path.md`).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        *(
            "backpropagation",
            "certificate",
            "chain_rule",
            "clip_rules",
            "clipping",
            "coordinates",
            "jacobians",
            "linearisation",
            "monitor",
        ),
        *("forecast", "one_block", "one_layer", "by_name", "passes", "wide", "spectra"),
        *("training", "trials"),
    ],
)
