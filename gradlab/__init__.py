"""gradlab: a laboratory for vanishing and exploding gradients.

Backpropagation hands an early layer a gradient that is a product of many Jacobians; gradlab
computes that product exactly, predicts it, and holds one against the other.
"""

from gradlab import starting

starting.tell()  # before all that takes time

import lazy_loader  # noqa: E402

__version__ = "0.1.0"

# The names are listed once, in __init__.pyi, and imported at first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
