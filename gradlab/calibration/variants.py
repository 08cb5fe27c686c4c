"""Many wrong functions in one program, of which an argument picks one: it is compiled once.

A whole experiment takes longer to compile than to run at the small scale, and a mutation changes
little of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from gradlab.calibration import mutations
from gradlab.calibration.mutations import Mutation
from gradlab.calibration.rehearsal import Rehearsal
from gradlab.calibration.wrong import Change, OfResult
from gradlab.experiment import fault
from gradlab.experiment.fault import Function

Call = Callable[[], Any]

# Nearly all the time goes into compiling; a program that runs a few dozen times need not be fast.
COMPILED: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


@dataclass(frozen=True)
class Program:
    """A run of an experiment, compiled once, of which arguments say what is wrong.

    Attributes:
        mutations: those that it has, by the number that picks one, from 1 on.
        unable: those that cannot share a program with others.
    """

    mutations: Mapping[int, Mutation]
    unable: Sequence[Mutation]
    _run: Callable[..., dict[str, Any]]
    _scale: int

    def arrays(self, seed: int, number: int = 0, *, factor: float = 1.0) -> dict[str, Any]:
        """What `compute` returns with the mutation picked, or with all weights times a factor."""
        return self._run(jax.random.key(seed), number if factor == 1 else self._scale, factor)


def programs(one: Rehearsal, group: Sequence[Mutation]) -> list[Program]:
    """Programs with every mutation of the group, and the scale of all weights: one if it may be."""
    now, compute = dict[str, Any](), one.experiment.module.compute

    def scaled(W: Array) -> Array:
        return (now["factor"] * W).astype(W.dtype)

    def program(cfg: Any, key: Array, number: int, factor: float) -> Any:
        now.update(number=number, factor=factor)
        return compute(cfg, key)

    scale = Mutation("weights scaled", mutations.of_weights(scaled))
    made, cfg = Variants([*group, scale], lambda: now["number"]), one.arguments
    try:
        with planted(one, made.sites):
            lowered = jax.jit(program).lower(cfg, jax.random.key(0), 0, 1.0)
    except Exception:  # by one that cannot be told apart from the others
        if not group:
            raise
        if len(group) == 1:
            return [dataclasses.replace(each, unable=group) for each in programs(one, [])]
        halves = group[: len(group) // 2], group[len(group) // 2 :]
        return [each for half in halves for each in programs(one, half)]
    able = {n: mutation for n, mutation in enumerate(group, 1) if n not in made.unable}
    unable = [mutation for n, mutation in enumerate(group, 1) if n in made.unable]
    run = partial(lowered.compile(COMPILED), cfg)
    return [Program(able, unable, run, 1 + len(group))]


@contextlib.contextmanager
def planted(one: Rehearsal, sites: Mapping[str, Change]) -> Iterator[None]:
    """All the wrong functions in their places while the block runs."""
    with contextlib.ExitStack() as stack:
        for target, made in sites.items():
            stack.enter_context(fault.change(target, made)(one.experiment))
        yield


class Variants:
    """Mutations in one program, of which a number picks one, from 1 on; 0 is none of them.

    A function that another calls is mutated too, but by no mutation of both: what is wrong with the
    outer one is wrong once. Within a wrong function all are honest.

    Attributes:
        sites: what is planted in each function.
        unable: the numbers of those found, while a program was traced, that cannot stand beside the
            honest function: they raise, or give something of another shape.
    """

    def __init__(self, group: Sequence[Mutation], picked: Call) -> None:
        self._group, self._picked = group, picked
        self._around, self._is_wrong = list[str](), False
        self.unable = set[int]()
        targets = dict.fromkeys(target for mutation in group for target in mutation.sites)
        self.sites: dict[str, Change] = {target: partial(self._at, target) for target in targets}

    def _at(self, target: str, honest: Function) -> Function:
        """The function that is the honest one, or the wrong one that is picked."""

        def function(*args: Any, **kwargs: Any) -> Any:
            if self._is_wrong:
                return honest(*args, **kwargs)
            changes = self._changes(target)
            later = [self._honest_within(target, value) for value in args]
            named = {name: self._honest_within(target, value) for name, value in kwargs.items()}
            wrong = {
                number: partial(self._within, target, True, change(honest), *later, **named)
                for number, change in changes.items()
                if not isinstance(change, OfResult)
            }
            result = self._one_of(
                partial(self._within, target, False, honest, *args, **kwargs), wrong
            )
            after = {
                number: partial(self._within, target, True, change.changed, result)
                for number, change in changes.items()
                if isinstance(change, OfResult)
            }
            return self._one_of(lambda: result, after)

        return function

    def _changes(self, target: str) -> dict[int, Change]:
        """What the mutations do to a function where it is called now, by their numbers."""
        return {
            number: mutation.sites[target]
            for number, mutation in enumerate(self._group, 1)
            if target in mutation.sites and not mutation.sites.keys() & set(self._around)
        }

    def _honest_within(self, target: str, value: Any) -> Any:
        """A function given as an argument, honest whenever it is traced: jax may do so later."""
        is_function = callable(value) and jax.tree_util.all_leaves([value])
        return partial(self._within, target, True, value) if is_function else value

    def _within(
        self, target: str, is_wrong: bool, function: Function, *args: Any, **kwargs: Any
    ) -> Any:
        """What the function returns, while it is known that it stands for the target."""
        before, self._is_wrong = self._is_wrong, is_wrong
        self._around.append(target)
        try:
            return function(*args, **kwargs)
        finally:
            self._around.pop()
            self._is_wrong = before

    def _one_of(self, honest: Call, wrong: Mapping[int, Call]) -> Any:
        """What the picked one gives; those that prove unable are left out."""
        if not wrong:
            return honest()
        places = [0] * (1 + len(self._group))
        for place, number in enumerate(wrong, 1):
            places[number] = place
        try:
            return jax.lax.switch(jnp.array(places)[self._picked()], [honest, *wrong.values()])
        except Exception:
            able = {number: call for number, call in wrong.items() if _are_alike(honest, call)}
            if len(able) == len(wrong):
                raise
            self.unable |= wrong.keys() - able.keys()
            return self._one_of(honest, able)


def _are_alike(honest: Call, wrong: Call) -> bool:
    """Whether both can be traced, and give arrays of the same shapes and formats."""
    try:
        one, other = (jax.eval_shape(call) for call in (honest, wrong))
    except Exception:
        return False
    leaves = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    structures: list[Any] = [jax.tree.structure(tree) for tree in (one, other)]
    return bool(leaves[0] == leaves[1] and structures[0] == structures[1])
