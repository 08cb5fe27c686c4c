"""One judged run that leaves no files: an experiment at one scale, and a seed, to its claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from gradlab.experiment import dataset, loading, schema
from gradlab.experiment.claim import Claim
from gradlab.experiment.loading import Experiment
from gradlab.running import composition, machine


@dataclass(frozen=True)
class Rehearsal:
    """An experiment with the config of one scale.

    Attributes:
        experiment: the experiment.
        cfg: its config there.
    """

    experiment: Experiment
    cfg: Any
    # What came back from disk, by the structure of what went there.
    _read: dict[Any, xr.Dataset] = field(default_factory=dict, repr=False, compare=False)

    @property
    def draws(self) -> bool:
        """Whether `compute` uses its key: the claims of one that does not are the same for all."""
        try:
            jax.eval_shape(self.experiment.module.compute, self.arguments, None)
        except Exception:  # by whatever asks the key that is missing for something
            return True
        return False

    @property
    def arguments(self) -> Any:
        """The config as `compute` takes it."""
        return schema.arrays(self.cfg)

    def data(self, seed: int, arrays: dict[str, Any]) -> xr.Dataset:
        """What `compute` returned, as it is read back from disk.

        The first of a structure goes there; the others are this one with their own values.
        """
        leaves, tree = jax.tree.flatten(arrays)
        structure = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        before = self._read.get(structure)
        if before is not None and (data := refilled(before, arrays)) is not None:
            return data.assign_attrs(seed=type(before.attrs["seed"])(seed))
        made = loading.label(self.experiment, self.cfg, seed, arrays)
        data = dataset.parsed(dataset.as_bytes(made), Path("data.nc"))
        self._read[structure] = data.copy(deep=True)
        return data

    def claims(self, data: xr.Dataset) -> list[Claim]:
        """The claims about a dataset."""
        return loading.judge(self.experiment, data)

    def judged(self, seed: int) -> list[Claim]:
        """The claims about the run with this seed; one program serves all seeds."""
        compute = jax.jit(self.experiment.module.compute)
        return self.claims(self.data(seed, compute(self.arguments, jax.random.key(seed))))


def prepared(file: Path, scale: str) -> Rehearsal:
    """The rehearsal of the experiment in a file, jax being set up as for a run of it."""
    experiment = loading.load(file)
    settings, cfg = composition.composed(experiment, [f"scale={scale}"])
    machine.prepare(settings.precision)
    return Rehearsal(experiment, cfg)


def refilled(before: xr.Dataset, arrays: dict[str, Any]) -> xr.Dataset | None:
    """A dataset read from disk with the values of other arrays; None where its axes are others."""
    given = {name: dataset.as_variable(array) for name, array in arrays.items()}
    axes = [name for name in given if name in before.coords]
    if not all(np.array_equal(before[name], given[name]) for name in axes):
        return None
    return before.copy(data={name: given[str(name)].values for name in before.data_vars})


def fresh_seeds(entropy: int, name: str) -> Iterator[int]:
    """Seeds without end, other ones for each experiment and each entropy."""
    rng = np.random.default_rng([entropy, *name.encode()])
    while True:
        yield int(rng.integers(2**31))
