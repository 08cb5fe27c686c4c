from . import (
    activations as activations,
    certificate as certificate,
    chain as chain,
    clipping as clipping,
    dataset as dataset,
    ensembles as ensembles,
    estimate as estimate,
    experiment as experiment,
    figures as figures,
    jacobians as jacobians,
    scaled as scaled,
    schema as schema,
    spectra as spectra,
    theory as theory,
    training as training,
)
from .dataset import Named as Named
from .dataset import named as named
from .estimate import Claim as Claim
from .experiment import fault as fault
from .figures import Axes as Axes
from .figures import Figure as Figure
from .runner import run as run
from .schema import BadInput as BadInput
from .schema import Floats as Floats
from .schema import Ints as Ints
from .schema import Strings as Strings
from .schema import config as config
from .schema import key as key
