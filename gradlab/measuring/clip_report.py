"""What monitors saw, in words: every one in an optimiser's state, and one verdict with its rule."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from gradlab.measuring.global_norm import Tree
from gradlab.measuring.leaf_norms import value
from gradlab.measuring.monitor import MonitorState, record, scalars

# A threshold that fires more often than this is no exception any more.
ALWAYS = 0.9
# More than the rounding of 16-bit entries can move a norm: 2^-8 for bfloat16, and as much again.
OFF = 2.0**-7
NUM_ROWS = 10

State = TypeVar("State")


@dataclass(frozen=True)
class Report:
    """A verdict and a table; `print` it, or let a notebook show it.

    Attributes:
        verdict: one line that names what is wrong, each with its rule.
        head: the columns of the table.
        rows: a row a leaf, the ten that matter, those with entries that are not finite first.
        lines: what each monitor saw.
    """

    verdict: str
    lines: tuple[str, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        table = ["  ".join(f"{cell:>12}" for cell in row) for row in (self.head, *self.rows)]
        return "\n".join([self.verdict, *self.lines, *table])

    def _repr_html_(self) -> str:
        def row(cells: tuple[str, ...], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in self.rows)
        said = "<br>".join(html.escape(line) for line in (self.verdict, *self.lines))
        return f"<p>{said}</p><table><tr>{row(self.head, 'th')}</tr>{body}</table>"


def monitors(opt_state: Any) -> dict[str, MonitorState]:
    """Every monitor's state in an optimiser's state, by its path."""
    return states_of(opt_state, MonitorState)


def states_of(opt_state: Any, kind: type[State]) -> dict[str, State]:
    """Every state of one kind in an optimiser's state, by its path."""
    state = getattr(opt_state, "opt_state", opt_state)  # Flax's Optimizer holds it

    def is_wanted(node: Any) -> bool:
        return isinstance(node, kind)

    found = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_wanted)
    return {jax.tree_util.keystr(path): node for path, node in found if is_wanted(node)}


def report(opt_state: Any, params: Tree = None) -> Report:
    """What all monitors in an optimiser's state saw.

    Args:
        opt_state: of any optimiser: chained, masked, by group, over several steps, or a model.
        params: all parameters, so that those are named that no clip ever saw.

    Raises:
        ValueError: there is no monitor in it.
    """
    found = monitors(opt_state)
    if not found:
        raise ValueError("opt_state holds no monitor; allowed: one of gl.clipping.monitor(clip, n)")
    # A verdict a monitor, and one on what none of them saw.
    several = len(found) > 1
    faults = [
        f"{path}: {fault}" if several else fault
        for path, state in found.items()
        for fault in _faults(state)
    ]
    faults += _unseen(found, params)
    quiet = "; ".join(_rate(state) for state in found.values())
    rows = sorted(row for state in found.values() for row in _rows(state))[:NUM_ROWS]
    return Report(
        verdict="; ".join(faults) or quiet,
        lines=tuple(f"{path or 'the clip'}: {_summary(state)}" for path, state in found.items()),
        head=("leaf", "not finite", "first at step", "mean share"),
        rows=tuple(cells for _, cells in rows),
    )


def _faults(state: MonitorState) -> list[str]:
    """What is wrong, in the order of what hides what."""
    steps = int(value(state.num_steps))
    if not steps:
        return ["the clip has seen no step yet"]
    found = []
    infinite, first = value(state.infinite), value(state.first_infinite)
    if infinite.any():
        leaf = min(np.flatnonzero(infinite), key=lambda i: first[i])
        found.append(
            f"not finite on {int(value(state.num_infinite))} of {steps} steps, first at step "
            f"{first[leaf]} in {state.watched.names[leaf]}"
        )
    tau, seen = state.watched.tau, record(state)
    fired = seen.norm_before > seen.norm_after
    if tau is not None and np.any(seen.norm_after[fired] > tau * (1 + OFF)):
        worst = np.max(seen.norm_after[fired])
        found.append(
            f"the norm after the clip is up to {worst:.3g}, above its threshold {tau:g}: the norm "
            "is taken in too short a format (bfloat16), or of a part of the gradient"
        )
    if int(value(state.num_fired)) > ALWAYS * steps:
        found.append(f"{_rate(state)}: the threshold is the learning rate; {_step(state)}")
    silent = np.flatnonzero((value(state.total_share) == 0) & (infinite == 0))
    if silent.size and int(value(state.num_infinite)) < steps:
        names = ", ".join(state.watched.names[leaf] for leaf in silent[:3])
        found.append(f"no gradient in any step: {names} ({silent.size} in all)")
    return found


def _unseen(found: dict[str, MonitorState], params: Tree) -> list[str]:
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
    unseen = sorted(names - {name for state in found.values() for name in state.watched.names})
    return [f"no clip ever saw {', '.join(unseen[:3])} ({len(unseen)} in all)"] if unseen else []


def _rate(state: MonitorState) -> str:
    steps = max(int(value(state.num_steps)), 1)
    return f"fired on {100 * int(value(state.num_fired)) / steps:.3g} % of {steps} steps"


def _step(state: MonitorState) -> str:
    row = scalars(state)
    text = f"the median step is {row['clip/factor_p50']:.2g} of what was asked for"
    rate = row.get("clip/learning_rate")
    return text if rate is None else f"{text}, a learning rate of {rate:.2g}"


def _summary(state: MonitorState) -> str:
    row = scalars(state)
    norms = []
    for when in ("before", "after"):
        parts = (f"P{part} {row[f'clip/norm_{when}_p{part}']:.3g}" for part in (50, 90, 99))
        norms.append(f"norm {when} {', '.join(parts)}")
    pushed = row.get("clip/pushed_under_epsilon")
    under = [] if pushed is None else [f"{100 * pushed:.3g} % of the entries pushed under epsilon"]
    return "; ".join([_rate(state), *norms, _step(state), *under])


def _rows(state: MonitorState) -> list[tuple[tuple[float, float], tuple[str, ...]]]:
    """Each leaf as a key to sort by, and its cells."""
    finite = max(int(value(state.num_steps)) - int(value(state.num_infinite)), 1)
    columns = zip(
        state.watched.names,
        value(state.infinite),
        value(state.first_infinite),
        value(state.total_share) / finite,
        strict=True,
    )
    return [
        (
            (-float(infinite), -float(share)),
            (name, str(infinite), "" if first < 0 else str(first), f"{share:.3g}"),
        )
        for name, infinite, first, share in columns
    ]
