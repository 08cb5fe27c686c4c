"""All singular values of a long product, each to high relative accuracy: a closed room.

A chain, its input and depths enter; the spectrum at every depth, the vectors of the whole product
and a bound on the error of every logarithm leave. The layers are taken, one after another, into
factors `L diag(d) U` of their product, which never leave. Nothing else in here is meant for the
outside, and a test reads the imports. `docs/product_svd.md` says how it works.
"""

from gradlab.measuring.product_svd.error_bound import error_bound
from gradlab.measuring.product_svd.one_sided import Decomposition
from gradlab.measuring.product_svd.spectrum import Spectrum, singular_values, singular_vectors

__all__ = ["Decomposition", "Spectrum", "error_bound", "singular_values", "singular_vectors"]
