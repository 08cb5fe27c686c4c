"""What the audit of one structure of model, batch and loss needs once, and the batches it takes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.diagnosis import anatomy, changes, door, facts, measures, memory, rewiring
from gradlab.diagnosis.changes import Change
from gradlab.diagnosis.program import Program
from gradlab.errors import BadInput


@dataclass(frozen=True)
class Prepared:
    """What one structure of model, batch and loss needs once."""

    anatomy: anatomy.Anatomy
    slices: changes.Slices
    phis: tuple[str, ...]
    measure: Callable[[tuple[Change, ...]], Callable[..., measures.Measured]]
    recall: Callable[[], Callable[[Sequence[Any]], list[memory.Memory]] | None]

    def program(self, change: Sequence[Change]) -> Program:
        """The program with the changes that are of operations."""
        return rewiring.rewired(self.anatomy, change, self.slices)


_PLANS: OrderedDict[Any, Prepared] = OrderedDict()
_MOST_PLANS = 8


def planned(subject: door.Subject, treedef: Any, loss: door.Loss, arrays: list[Any]) -> Prepared:
    """The plan of a structure, made once."""
    kinds = tuple(
        (np.shape(a), str(jnp.result_type(a))) for a in (*subject.params, *subject.rest, *arrays)
    )
    names = ("jax_enable_x64", "jax_default_matmul_precision")
    settings = tuple(str(getattr(jax.config, name)) for name in names)
    key = (subject.structure, kinds, treedef, loss, settings)
    if key not in _PLANS:
        _PLANS[key] = _made(subject, arrays, treedef, loss)
        if len(_PLANS) > _MOST_PLANS:
            _PLANS.popitem(last=False)
    _PLANS.move_to_end(key)
    return _PLANS[key]


def _made(subject: door.Subject, arrays: list[Any], treedef: Any, loss: door.Loss) -> Prepared:
    read = anatomy.of_loss(subject, arrays, treedef, loss)
    slices = facts.slices_of(read)
    size = facts.batch_size(arrays)

    @cache
    def measure(change: tuple[Change, ...]) -> Callable[..., measures.Measured]:
        program = rewiring.rewired(read, change, slices)
        return measures.compiled(anatomy.with_program(read, program), size)

    return Prepared(
        read,
        slices,
        facts.activation_names(read),
        measure,
        cache(lambda: memory.recalled(read)),
    )


def as_array(leaf: Any) -> Any:
    """A leaf of a batch as an array of jax's."""
    try:
        return leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    except (TypeError, ValueError):
        raise BadInput(
            f"The batch holds a {type(leaf).__name__}; it must be an array or a pytree of arrays."
        ) from None


def check_batch(arrays: Sequence[Any]) -> None:
    """Raise where a batch has no example."""
    if arrays and (facts.batch_size(arrays) == 0 or all(a.size == 0 for a in arrays)):
        shapes = ", ".join(str(a.shape) for a in arrays)
        raise BadInput(f"The batch is empty: {shapes}; it must hold one example at least.")


def other_batch(other: Any, treedef: Any, arrays: list[Any]) -> list[Any]:
    """Another batch: the one given, or the entries of the first permuted, its masks kept."""
    if other is not None:
        leaves, structure = jax.tree_util.tree_flatten(other)
        given = [as_array(leaf) for leaf in leaves]
        if structure != treedef or [a.shape for a in given] != [a.shape for a in arrays]:
            raise BadInput(
                f"The other batch has shapes {[a.shape for a in given]}; it must have those of the "
                f"first, {[a.shape for a in arrays]}."
            )
        return given
    return [_permuted(leaf, seed) for seed, leaf in enumerate(arrays)]


def _permuted(leaf: Any, seed: int) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.clone(leaf) if leaf.ndim else jax.random.fold_in(leaf, 1)
    is_mask = leaf.dtype == bool or (
        jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.all(jnp.isfinite(leaf)))
    )
    if is_mask or leaf.size < 2:
        return leaf
    return _reordered(leaf, np.random.default_rng(seed).permutation(leaf.size))


@jax.jit
def _reordered(leaf: Any, order: Any) -> Any:
    return leaf.ravel()[order].reshape(leaf.shape)
