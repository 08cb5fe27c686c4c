"""One judged run that leaves no files: an experiment at one scale, and a seed, to its claims."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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

    @property
    def arguments(self) -> Any:
        """The config as `compute` takes it."""
        return schema.arrays(self.cfg)

    def data(self, seed: int, arrays: dict[str, Any]) -> xr.Dataset:
        """What `compute` returned, as it is read back from disk."""
        made = loading.label(self.experiment, self.cfg, seed, arrays)
        return dataset.parsed(dataset.as_bytes(made), Path("data.nc"))

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


def fresh_seeds(entropy: int, name: str) -> Iterator[int]:
    """Seeds without end, other ones for each experiment and each entropy."""
    rng = np.random.default_rng([entropy, *name.encode()])
    while True:
        yield int(rng.integers(2**31))
