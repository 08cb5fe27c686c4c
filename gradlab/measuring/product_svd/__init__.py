"""All singular values of a long product, each to high relative accuracy.

The layers of a chain enter, one after another; factors `L diag(d) U` of their product leave, whose
singular values `one_sided.svd` gives. `spectra` and `certificate` are its only callers.
"""
