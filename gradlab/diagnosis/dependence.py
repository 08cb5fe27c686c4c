"""What each value of a traced program depends on: weights, states, and the products between."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from gradlab.diagnosis.program import Program, Step

RESHAPING = {
    *("transpose", "reshape", "squeeze", "expand_dims", "convert_element_type", "copy", "copy_p"),
    *("name", "broadcast_in_dim", "optimization_barrier", "reduce_precision", "stop_gradient"),
    *("sharding_constraint", "index", "slice", "rev"),
}
ELEMENTWISE = {
    *("add", "add_any", "sub", "mul", "div", "neg", "max", "min", "exp", "exp2", "log", "log1p"),
    *("expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "tan", "sqrt", "rsqrt"),
    *("integer_pow", "pow", "square", "abs", "sign", "select_n", "clamp", "ge", "gt", "le", "lt"),
    *("eq", "ne", "and", "or", "not", "is_finite", "convert_element_type", "cbrt", "name", "copy"),
    *("custom_jvp_call", "stop_gradient", "asinh", "atan", "sinh", "cosh", "log_softplus"),
}
PRODUCTS = {"dot_general", "conv_general_dilated"}


class Reader:
    """What each value of a program depends on."""

    def __init__(self, program: Program, first_param: int, num_params: int, data: set[int]) -> None:
        self.program = program
        self.params = range(first_param, first_param + num_params)
        self.maker: dict[int, int] = {}
        self.users: dict[int, list[int]] = defaultdict(list)
        self.roots: dict[int, frozenset[int]] = {p: frozenset([p]) for p in self.params}
        self.before: dict[int, int] = dict.fromkeys(data, 0)  # steps behind a value, as bits
        keys = {v for v in data if _is_key(program, v)}
        self.noise = keys  # values that depend on the batch by its keys alone
        self.linear = 0  # the products of a weight and a state, as bits
        for k, step in enumerate(program.steps):
            self._read(k, step)

    def _read(self, k: int, step: Step) -> None:
        for value in step.reads:
            self.users[value].append(k)
        stated = [value for value in step.reads if value in self.before]
        roots = frozenset().union(*(self.roots.get(v, frozenset()) for v in step.reads))
        is_noise = bool(stated) and self.noise.issuperset(stated)
        for output in step.outputs:
            self.maker[output] = k
            if is_noise:
                self.noise.add(output)
                self.roots[output] = roots
            if stated:
                bits = 1 << k
                for value in stated:
                    bits |= self.before[value]
                self.before[output] = bits
            elif roots:
                self.roots[output] = roots
        weight = self.weight_of(step) if step.name in PRODUCTS else None
        if weight is not None and [v for v in stated if v != weight]:
            self.linear |= 1 << k

    def weight_of(self, step: Step) -> int | None:
        """The weight among the two operands of a product, or None.

        One that is drawn anew for each batch, as a Bayesian network's, is a weight beside a state.
        """
        weights = [v for v in step.reads if v not in self.before and self.roots.get(v)]
        if not weights and len(step.reads) == 2:
            weights = [v for v in step.reads if v in self.noise and self.roots.get(v)]
        return weights[0] if len(weights) == 1 else None

    def step(self, value: int) -> Step | None:
        """The step that makes a value; None for an input."""
        made = self.maker.get(value)
        return None if made is None else self.program.steps[made]

    def size(self, value: int) -> int:
        """The number of its entries."""
        return math.prod(self.program.types[value].shape)

    def plain(self, value: int) -> int:
        """What a state is but for its shape, and for factors that no state has a part in."""
        while (step := self.step(value)) is not None:
            stated = [v for v in step.reads if v in self.before]
            scaled = step.name in {"mul", "div"} and len(stated) == 1
            scaled |= is_doubled(step)
            if not (scaled or step.name in RESHAPING) or not stated:
                break
            value = stated[0]
        return value


def is_doubled(step: Step) -> bool:
    """Whether a step adds a value to itself."""
    return step.name in {"add", "add_any"} and len(step.reads) == 2 == 1 + len(set(step.reads))


def _is_key(program: Program, value: int) -> bool:
    """Whether an input is a key of random numbers, typed or raw."""
    kind = program.types[value]
    raw = str(kind.dtype) == "uint32" and kind.shape[-1:] == (2,)
    return raw or jnp.issubdtype(kind.dtype, jax.dtypes.prng_key)


def bits(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set, in ascending order: a set of steps."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def last(reader: Reader, branch: int, inside: int) -> list[int]:
    """The branch's layers that no other layer of it follows."""
    found, seen, front = [], set(), [branch]
    while front:
        made = reader.maker.get(front.pop())
        if made is None or made in seen:
            continue
        seen.add(made)
        if inside >> made & 1:
            found.append(made)
        elif reader.before[reader.program.steps[made].outputs[0]] & inside:
            front += [v for v in reader.program.steps[made].reads if v in reader.before]
    return sorted(found)


def made_by(reader: Reader, value: int) -> list[int]:
    """The layers that a state was made by, with no other layer between."""
    return last(reader, value, reader.linear)
