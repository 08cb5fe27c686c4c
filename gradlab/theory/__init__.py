"""What the mathematics predicts: one module for each body of theory, no keys, no chains.

Nothing here measures: a theory never imports a measuring room, nor is imported by one, so that
an experiment can hold one against the other. Each formula names its author, year and equation.
"""

from gradlab.theory import clipping as clipping
from gradlab.theory import gauss as gauss
from gradlab.theory import meanfield as meanfield
from gradlab.theory import products as products
from gradlab.theory import residual as residual
from gradlab.theory import scalar as scalar
from gradlab.theory import spectra as spectra
