"""What an experiment is told: typed values, checked at the door, that become a pytree.

The annotations of a config say what may vary inside one compiled program: `float` and lists of
floats are leaves (traced); `int`, `str`, `bool` and their lists are structure (static). This room
does not import jax before a config is turned into arrays, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

from gradlab.errors import BadInput

if TYPE_CHECKING:
    import jax

    Floats = jax.Array
    Ints = tuple[int, ...]
    Strings = tuple[str, ...]
else:
    Floats = list[float]
    Ints = list[int]
    Strings = list[str]

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """What a configuration key means and which values it takes; both ends are allowed ones."""

    doc: str
    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: str = ""  # another key, whose value this one must be below
    choices: tuple[str, ...] = ()
    fewest: int = 1  # values of a list, where a question needs several

    def allows(self, value: Any) -> bool:
        """Whether one value (not a list) is within the limits; nan never is."""
        if self.choices and value not in self.choices:
            return False
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        finite = isinstance(value, int) or math.isfinite(value)
        return finite and self.at_least <= value <= self.at_most and value > self.above

    def limits(self) -> str:
        """The limits in words, empty where there are none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        low = [f"above {self.above:g}"] if self.above > -math.inf else []
        low += [f"at least {self.at_least:g}"] if self.at_least > -math.inf else []
        low += [f"at most {self.at_most:g}"] if self.at_most < math.inf else []
        return " and ".join(low + ([f"below {self.below}"] if self.below else []))


LIMITS = tuple(field.name for field in dataclasses.fields(Key) if field.name != "doc")

# The names in `activations.PHI`, told here too because `--help` must not wait for jax.
ACTIVATIONS: tuple[str, ...] = (
    *("linear", "tanh", "logistic", "erf", "softsign", "hard_tanh", "sin"),
    *("relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus"),
)

DTYPES = ("float16", "bfloat16", "float32", "float64")

_COUNT: dict[str, Any] = {"at_least": 1, "at_most": 10**7}

# One word per idea: a config field with one of these names has this meaning and these limits.
WORDS: dict[str, Key] = {
    "activation": Key("the nonlinearity phi of every layer", choices=ACTIVATIONS),
    "batch_size": Key("examples in a batch", **_COUNT),
    "depth": Key("number of layers", **_COUNT),
    "dtype": Key("floating point format", choices=DTYPES),
    "factor": Key("factor of the branch F in a residual layer z + F(z)", at_least=0, at_most=10),
    "learning_rate": Key("step size of the optimiser", above=0, at_most=1e6),
    "num_draws": Key("number of independent draws", **_COUNT),
    "num_steps": Key("number of optimiser steps", **_COUNT),
    "sigma_b": Key("standard deviation of the biases b", at_least=0, at_most=1e3),
    "sigma_w": Key("standard deviation of W times the root of its fan-in", at_least=0, at_most=1e3),
    "tau": Key("clipping threshold: the largest gradient norm let through", above=0, at_most=1e30),
    "w": Key("weight of every layer of a scalar chain", at_least=-1e3, at_most=1e3),
    "width": Key("number of neurons in a layer", at_least=1, at_most=2**16),
}


_TYPES = "allowed: bool, int, float, str, lists of them, each with `| None` where it may be missing"

# What every dataset says of itself; no key of an experiment has one of these names.
RESERVED = ("experiment", "question", "seed", "config", "gradlab", "jax", "layout")


def key(doc: str, **limits: Any) -> Any:
    """A config field with a meaning and limits of its own, where `WORDS` has none.

    Raises:
        BadInput: there is no such limit.
    """
    for name in limits:
        if name not in LIMITS:
            raise BadInput(f"gl.key '{doc}': " + unknown("limit", name, LIMITS))
    below = limits.get("below", "")
    if not isinstance(below, str):
        raise BadInput(f"gl.key '{doc}': below is {below!r}; allowed: the name of another key")
    return dataclasses.field(metadata={"key": Key(doc, **limits)})


@dataclass(frozen=True)
class Entry:
    """One field of a config class: its name, the type of one value, and whether it is a list."""

    name: str
    type: type
    is_list: bool
    optional: bool
    key: Key

    @property
    def traced(self) -> bool:
        """Whether its values may vary inside one compiled program."""
        return self.type is float

    def allowed(self) -> str:
        """What the key takes, in words."""
        noun = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text"}
        one = noun.get(self.type, "a value")
        one = self.key.limits() if self.key.choices else f"{one} {self.key.limits()}".strip()
        fewest = self.key.fewest
        if self.is_list:
            one = (
                f"at least {fewest} values, each {one}"
                if fewest > 1
                else f"{one} or a list of such"
            )
        return one + (" or null" if self.optional else "")


@dataclass_transform(field_specifiers=(key,))
def config(cls: type[T]) -> type[T]:
    """The class as an experiment's configuration: a dataclass that `arrays` makes a pytree of."""
    if not isinstance(cls, type):
        raise BadInput(f"gl.config was given {cls!r}; allowed: a class, as in @gl.config")
    return dataclass(kw_only=True)(cls)


def entries(cls: type) -> tuple[Entry, ...]:
    """The fields of a config class, in the order written."""
    return _entries(cls)


@functools.cache
def _entries(cls: type) -> tuple[Entry, ...]:
    if not dataclasses.is_dataclass(cls):
        raise BadInput(f"{cls.__name__} is no config; allowed: a class with @gl.config above it")
    try:
        hints = typing.get_type_hints(cls)
    except NameError as error:
        raise BadInput(f"{cls.__name__} has an annotation of which {error}; {_TYPES}") from error
    return tuple(_entry(cls, field, hints[field.name]) for field in dataclasses.fields(cls))


def _entry(cls: type, field: dataclasses.Field[Any], hint: Any) -> Entry:
    written, optional = hint, type(None) in typing.get_args(hint)
    if optional:
        there = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        hint = there[0] if len(there) == 1 else hint
    is_list = typing.get_origin(hint) is list
    (kind,) = typing.get_args(hint) if is_list else (hint,)
    if kind not in (bool, int, float, str):
        raise BadInput(f"{cls.__name__}.{field.name} is annotated {written}; {_TYPES}")
    described = field.metadata.get("key") or WORDS.get(field.name) or Key("")
    return Entry(field.name, kind, is_list, optional, described)


def read(cls: type[T], values: Mapping[str, Any], node: str = "") -> T:
    """The config that plain values describe; lists become tuples and one value a list of one.

    `node` is where they stand in the composed config, for the names of keys in sentences.

    Raises:
        BadInput: a key is unknown, missing, of another type, or outside its limits.
    """
    known = {entry.name: entry for entry in entries(cls)}
    typed = {name: f"{node}.{name}".lstrip(".") for name in [*known, *values]}
    for name in values:
        if name not in known:
            raise BadInput(unknown("key", typed[name], [typed[own] for own in known]))
    for name, entry in known.items():
        if values.get(name, "???") == "???":  # OmegaConf's word for what nobody gave
            raise BadInput(f"key '{typed[name]}' is missing; allowed: {entry.allowed()}")
    checked = {name: _checked(known[name], values[name], typed[name]) for name in known}
    for name, entry in known.items():
        other = entry.key.below
        if other and not checked[name] < checked[other]:
            raise BadInput(
                f"{typed[name]} is {checked[name]} and {typed[other]} is {checked[other]}; "
                f"allowed: {name} below {other}"
            )
    return cls(**checked)


def unknown(noun: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known, with the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, cutoff=0.65)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{noun} '{name}' is not known; {hint}allowed: {', '.join(known) or 'none'}"


def _checked(entry: Entry, value: Any, name: str) -> Any:
    if value is None and entry.optional:
        return None
    given = list(value) if isinstance(value, list | tuple) else [value]
    wrong = BadInput(f"{name} is {_shown(value)}; allowed: {entry.allowed()}")
    if (isinstance(value, list | tuple) and not entry.is_list) or len(given) < entry.key.fewest:
        raise wrong
    try:
        cast = tuple(_cast(entry.type, item) for item in given)
    except (TypeError, ValueError):
        raise wrong from None
    if not all(entry.key.allows(item) and _finite(item) for item in cast):
        raise wrong
    return cast if entry.is_list else cast[0]


def _cast(kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    raise TypeError


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]" if value else "an empty list"
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return repr(value)


def values(cfg: Any) -> dict[str, Any]:
    """The plain values of a config, as `read` takes them and JSON holds them."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(cfg).items()
    }


def traced_values(cfg: Any) -> dict[str, Any]:
    """The plain values that may vary inside one compiled program."""
    return {entry.name: getattr(cfg, entry.name) for entry in entries(type(cfg)) if entry.traced}


def structure(cfg: Any) -> tuple[Any, ...]:
    """What two configs must have in common to go through one compiled program.

    Equal exactly where `arrays` gives pytrees of equal structure and shapes.
    """

    def part(entry: Entry, value: Any) -> Any:
        if not entry.traced or value is None:
            return (type(value).__name__, value)
        return len(value) if entry.is_list else "number"

    return tuple(part(entry, getattr(cfg, entry.name)) for entry in entries(type(cfg)))


def arrays(cfg: T) -> T:
    """The config as a pytree: each float a scalar leaf, each list of floats a leaf `(n,)`."""
    import jax.numpy as jnp

    cls: type = type(cfg)
    _register(cls)
    traced = {
        entry.name: jnp.asarray(value, dtype=float)
        for entry in entries(cls)
        if entry.traced and (value := getattr(cfg, entry.name)) is not None
    }
    return dataclasses.replace(cfg, **traced)  # type: ignore[type-var]


@functools.cache
def _register(cls: type) -> None:
    import jax

    jax.tree_util.register_dataclass(
        cls,
        data_fields=[entry.name for entry in entries(cls) if entry.traced],
        meta_fields=[entry.name for entry in entries(cls) if not entry.traced],
    )
