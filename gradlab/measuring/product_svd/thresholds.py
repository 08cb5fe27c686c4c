"""Every threshold of the room in one place; `docs/product_svd.md` has where each value comes from.

A threshold is for correctness where another value could give a wrong number, and for speed where
it could only cost time.
"""

from __future__ import annotations

import numpy as np

# Levels of precision of an elimination: that of the dtype; a residual of half as many digits more;
# double-word arithmetic, which has twice the digits.
WORKING, REFINED, DOUBLED = range(3)

# Nats that all layers taken in working precision may add to the error of a logarithm, and nats for
# one of them: a layer that would spend more is refined, so that the rest may stay in working
# precision. Correctness.
ERROR_BUDGET = 2e-11
LAYER_BUDGET = ERROR_BUDGET / 20

# The largest entry of the triangle that updates U in working precision, or twice the width if that
# is more. Correctness.
LARGEST_MULTIPLIER = 16.0

# Powers of two by which a ratio of scales may have risen again before the chain is gone through
# with refined layers, and before it is gone through in double words. Correctness: the rise is the
# factor by which roundings made meanwhile are amplified.
AMPLIFICATION_LIMITS = np.array([12, 16], np.int32)

# A perturbation of the range may be so many times larger than a sample of it. Correctness.
SAMPLE_MARGIN = 8

# L has at least so many columns beside its directions, or as many as there are directions, where
# the layer is wide enough. Correctness: they sample what rounding does beside the directions.
MIN_COMPLEMENT = 8

# Complete pivoting keeps the order of columns unless a pivot is larger by more than so many powers
# of two. Correctness: the condition of U after 50 layers of width 64 is 1e3 with it, 1e6 without.
COLUMN_TOLERANCE = 1

# Powers of two to which the ratio of two columns is clipped before a QR of columns in descending
# order. Larger ones meet a zero there. Correctness: it keeps infinity times zero away.
LARGEST_RATIO = 64

# More powers of two than any two scales are apart: the ratio before there is one.
NO_RATIO = 2**30

# Sweeps of one-sided Jacobi: clustered singular values have needed seven. Correctness, if reached.
MAX_SWEEPS = 30

# So many partial sums at once make use of a CPU's vectors. Speed.
LANES = 8

# A bound of first order that is above this is no bound. Correctness.
FIRST_ORDER = 0.1

# A change that is at most so many times larger right of `diag(d)` is counted there, where it grows
# no more. It makes a bound tighter or looser, and never wrong.
RIGHT_SIDE_RATIO = 16
