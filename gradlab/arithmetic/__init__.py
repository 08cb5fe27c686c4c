"""Numbers beyond a float: their bits, twice their digits, their own exponent, balls around them.

Arrays and pytrees enter; arrays, pairs and mantissas with exponents leave. It knows no layer and
no gradient, and imports nothing of gradlab.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["balls", "bits", "doubled", "formats", "norms", "precision", "qr", "scaled"]
)
