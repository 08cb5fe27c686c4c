"""Many wrong functions in one program, of which an argument picks one: it is compiled once.

A whole experiment takes longer to compile than to run at the small scale, and a mutation changes
little of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.calibration.mutations import Mutation
from gradlab.calibration.wrong import Change, Outermost
from gradlab.experiment.fault import Function


def groups(found: Sequence[Mutation]) -> list[list[Mutation]]:
    """The mutations of one function together, and those of several functions; in this order.

    What only changes a result is alone: picked, it would be computed once for every pick.
    """
    together: dict[str, list[Mutation]] = {}
    for mutation in found:
        alone = "grid.over_draws" in mutation.sites
        place = "" if len(mutation.sites) > 1 else next(iter(mutation.sites))
        together.setdefault(f"{place} {mutation.name}" if alone else place, []).append(mutation)
    return list(together.values())


def planted_together(group: Sequence[Mutation], picked: Callable[[], Any]) -> dict[str, Change]:
    """What makes each function that is mutated the one that is picked: 0 is the honest one."""
    targets = dict.fromkeys(target for mutation in group for target in mutation.sites)
    return {
        target: one_of([mutation.sites.get(target) for mutation in group], picked)
        for target in targets
    }


def one_of(changes: Sequence[Change | None], picked: Callable[[], Any]) -> Change:
    """The change into one of several wrong functions, the honest one for 0 and where it is None."""
    once = Outermost()  # a wrong function may call itself
    real = [change for change in changes if change is not None]
    places = [0, *(0 if change is None else 1 + real.index(change) for change in changes)]

    def made(honest: Function) -> Function:
        functions = [honest, *(change(honest) for change in real)]

        def wrong(*args: Any, **kwargs: Any) -> Any:
            calls = [lambda one=one: one(*args, **kwargs) for one in functions]
            return jax.lax.switch(jnp.array(places)[picked()], calls)

        return wrong

    return once(made)
