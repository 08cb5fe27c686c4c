"""What the mathematics predicts: each module one body of theory, each formula with its source.

Parameters of a law enter (scales, an activation, a depth); predicted numbers leave. No keys, no
chains: nothing here draws or measures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    [
        *(
            "attention",
            "clipping",
            "collapse",
            "dropout",
            "finite_width",
            "gauss",
            "meanfield",
            "normalisation",
        ),
        *("parametrisation", "products", "ranges", "residual", "scalar", "spectra"),
        *("tangent_kernel", "transformer"),
    ],
)
