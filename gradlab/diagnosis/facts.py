"""All that is known of a model on a batch: its anatomy, its weights, the numbers of a pass."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.diagnosis import anatomy as anatomies
from gradlab.diagnosis import laws
from gradlab.diagnosis.anatomy import Anatomy, starred
from gradlab.diagnosis.changes import Slices
from gradlab.diagnosis.entries import Weights
from gradlab.diagnosis.layers import Layer, slice_name
from gradlab.diagnosis.measures import Measured
from gradlab.diagnosis.memory import Memory
from gradlab.models.activations import PHI

_GRID = np.array([-5.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.2, 0.1, 0.3, 0.7, 1.2, 1.7, 2.5, 4.0])


@dataclass(frozen=True)
class Facts:
    """What the checks read.

    Attributes:
        anatomy: the parts of the program.
        slices: the names of parameters, and of slices of stacked ones.
        weights: their entries' distribution, by name.
        phis: the name of each layer's activation; '' for one that is not known, or none.
        measured: the numbers of one pass.
        z: standard errors that chance does not exceed.
        later: the numbers of a pass after every parameter that has a gradient has moved; asked for
            where some have none.
        memories: of the program's loops over time; asked for once.
        at_the_edge: operations that read a 0 where they have no finite derivative; asked for where
            a gradient is not finite.
    """

    anatomy: Anatomy
    slices: Slices
    weights: dict[str, Weights]
    phis: tuple[str, ...]
    measured: Measured
    z: float
    later: Callable[[], Measured]
    at_the_edge: Callable[[], list[str]]
    memories: Callable[[], list[Memory]]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of the program."""
        return self.anatomy.layers

    def of_layer(self, key: str, k: int) -> float:
        """A number of layer k."""
        return float(self.measured.layers[key][k])

    def sigma_w(self, k: int) -> float:
        """`√fan_in` times the root mean square of layer k's weights, and of what multiplies it."""
        log = self.of_layer("log_weight", k) + self.of_layer("log_factor", k)
        return math.exp(log) * math.sqrt(self.layers[k].fan_in)

    def is_used(self, name: str) -> bool:
        """Whether the loss depends on a parameter."""
        return self.slices[name][0] in self.anatomy.reached

    def is_frozen(self, name: str) -> bool:
        """Whether every use of a parameter goes through `stop_gradient`."""
        return self.slices[name][0] in self.anatomy.frozen

    def log_gradient(self, name: str, later: Measured | None = None) -> float:
        """The log of the norm of a parameter's gradient."""
        measured = later or self.measured
        number, index = self.slices[name]
        if index is not None and number in measured.slices:
            return float(measured.slices[number][index])
        return float(measured.params["log_gradient"][number])

    def alike(self) -> dict[tuple[str, tuple[int, ...]], list[str]]:
        """Names of parameters of one role, shape and fan_in of their layer, in order."""
        behind = {
            name: layer.fan_in
            for layer in self.layers
            for name in (layer.name, *self.bias_names(layer))
        }
        groups: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
        for name, weights in self.weights.items():
            groups[starred(name), (*weights.shape, behind.get(name, 0))].append(name)
        return dict(groups)

    def of_logits(self) -> set[str]:
        """The roles that make attention's logits alone: queries and keys."""
        return {
            starred(self.layers[i].name)
            for softmax in self.anatomy.softmaxes
            for i in set(softmax.layers) - set(softmax.weighed)
            if softmax.use == "attention"
        }

    def pattern(self, name: str) -> str:
        """The role of a parameter, if all of that role have its size, or else its name.

        What helps one of them is done to all, or it would differ from its alike.
        """
        members = [self.weights[n] for n in self.weights if starred(n) == starred(name)]
        sizes = [math.hypot(weights.mean, weights.std) for weights in members]
        same = len(sizes) > 1 and max(sizes) <= (1 + laws.SAME) ** 2 * min(sizes)
        return starred(name) if same else name

    def bias_names(self, layer: Layer) -> list[str]:
        """The names of what is added to a layer's product."""
        if layer.index is None:
            return [self.anatomy.names[b] for b in layer.biases]
        wanted = {(b, layer.index) for b in layer.biases}
        return [name for name, slice_ in self.slices.items() if slice_ in wanted]


def slices_of(anatomy: Anatomy) -> Slices:
    """The names of parameters, and of the slices of stacked ones."""
    slices: Slices = {name: (number, None) for number, name in enumerate(anatomy.names)}
    for layer in anatomy.layers:
        if layer.index is not None:
            slices[layer.name] = (layer.param, layer.index)
            for bias in layer.biases:
                name = slice_name(anatomy.names[bias], layer.index)
                slices[name] = (bias, layer.index)
    return slices


def activation_names(anatomy: Anatomy) -> tuple[str, ...]:
    """The name of each layer's activation, found by its values."""
    known: dict[Any, str] = {}
    names = []
    for layer in anatomy.layers:
        kind = anatomy.program.types[layer.pre]
        signature = anatomies.phi_signature(layer, anatomy.program)
        if signature not in known:
            known[signature] = _activation_name(layer, kind)
        names.append(known[signature])
    return tuple(names)


def _activation_name(layer: Layer, kind: Any) -> str:
    phi = anatomies.function(layer)
    if phi is None:
        return ""
    if np.issubdtype(kind.dtype, np.complexfloating):
        return "?"
    values = []
    for start in range(0, len(_GRID), max(math.prod(kind.shape), 1)):
        part = _GRID[start : start + math.prod(kind.shape)]
        filled = np.resize(part, kind.shape)
        made = np.asarray(jax.jit(phi)(jnp.asarray(filled, kind.dtype)), float).ravel()
        values.append(made[: len(part)])
    measured = np.concatenate(values)
    tolerance = 3e-3 if np.dtype(kind.dtype).itemsize >= 4 else 3e-2
    for name, expected in _known_values().items():
        if np.allclose(measured, expected, rtol=tolerance, atol=tolerance):
            return name
    return "?"


@cache
def _known_values() -> dict[str, np.ndarray]:
    """The values of each activation of the table on the grid."""
    made = jax.jit(lambda h: [phi(h) for phi in PHI.values()])(jnp.asarray(_GRID, jnp.float32))
    return {name: np.asarray(x, float) for name, x in zip(PHI, made, strict=True)}


def chains(anatomy: Anatomy) -> list[list[int]]:
    """Longest runs of layers with nothing but an activation between, three or more."""
    following: dict[int, list[int]] = defaultdict(list)
    for source, k in anatomy.links:
        following[source].append(k)
    fed = {k for _, k in anatomy.links}
    runs = []
    for start in range(len(anatomy.layers)):
        if start in fed:
            continue
        run = [start]
        while len(following[run[-1]]) == 1:
            run.append(following[run[-1]][0])
        if len(run) >= 3:
            runs.append(run)
    return runs


def streams(anatomy: Anatomy) -> list[list[int]]:
    """Residual sums that follow one another along one stream, two or more, in order."""
    by_step = {r.total: k for k, r in enumerate(anatomy.residuals)}
    following = {
        by_step[r.before]: k for k, r in enumerate(anatomy.residuals) if r.before in by_step
    }
    starts = [k for k, r in enumerate(anatomy.residuals) if r.before not in by_step]
    runs = []
    for start in starts:
        run = [start]
        while run[-1] in following:
            run.append(following[run[-1]])
        if len(run) >= 2:
            runs.append(run)
    return runs


def batch_size(leaves: Sequence[Any]) -> int | None:
    """The length of the first axis that all arrays of a batch share, or None."""
    lengths = {np.shape(leaf)[0] for leaf in leaves if np.ndim(leaf)}
    return lengths.pop() if len(lengths) == 1 else None
