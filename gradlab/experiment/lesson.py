"""What an experiment offers to the lesson: figures to drag, numbers, and verdicts, each at a place.

The lesson knows places, such as the figure "chain" or the number "left below one", and no
experiment; an experiment that has something to show says so itself, with `LESSON = Offer(...)`:

    LESSON = gl.lesson.Offer(
        figures={"network": gl.lesson.read("network", median="log10_median")},
        numbers={"left below one": gl.lesson.at("log10_left", w=0.9, layer=50)},
        claims={"limit below one": "0.9^L tends"},
    )

What can be read from the dataset need not be said: each part of a figure is the array of its own
name unless another is named, and a variable `log10_...` holds the logarithm of its number. A figure
whose parts are no arrays of the dataset is offered as a function. The places of numbers and claims
are those that `page/templates/lesson.html` names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

from gradlab.errors import BadInput
from gradlab.experiment.schema import unknown
from gradlab.lazy import np

if TYPE_CHECKING:
    import xarray as xr

LAST = "last"  # the end of an axis
HOW = ("max", "min", "mean", "median", "count")
SCALES = ("1", "log10", "ln")
_PREFIXES = {"log10_": "log10", "log_": "ln"}  # of variables that hold a logarithm

Packed = dict[str, Any]
Payload = Mapping[str, Any]


@dataclass(frozen=True)
class At:
    """Where a number of a dataset stands; `at` makes one."""

    variable: str
    how: str | None
    along: str | None
    scale: str
    where: Mapping[str, Any]


def at(
    variable: str,
    /,
    *,
    how: str | None = None,
    along: str | None = None,
    scale: str | None = None,
    **where: Any,
) -> At:
    """Where a number of a dataset stands: an array of it, an axis, or an attribute.

    Args:
        variable: its name.
        how: an entry of `HOW` that makes one number of many.
        along: an axis of texts; there is then a number for each of them.
        scale: "log10" or "ln" where the dataset holds the number's logarithm, else "1"; left out,
            it is read from the variable's name.
        where: the place along each axis, by its value (for floats to rounding), or "last".

    Raises:
        BadInput: `how` or `scale` is not known.
    """
    if how is not None and how not in HOW:
        raise BadInput(unknown("how", how, HOW))
    if scale is None:
        held = (known for start, known in _PREFIXES.items() if variable.startswith(start))
        scale = next(held, "1")
    if scale not in SCALES:
        raise BadInput(unknown("scale", scale, SCALES))
    return At(variable, how, along, scale, where)


@dataclass(frozen=True)
class Offer:
    """What an experiment file offers to the lesson, each part by place.

    Attributes:
        figures: a function of the dataset that gives what `FIGURES` asks for at that place.
        numbers: where in the dataset each number stands.
        claims: words that a claim's sentence has; all claims with them support the place.
    """

    figures: Mapping[str, Callable[[xr.Dataset], Payload]] = field(default_factory=dict)
    numbers: Mapping[str, At] = field(default_factory=dict)
    claims: Mapping[str, str] = field(default_factory=dict)


def read(figure: str, /, **names: str) -> Callable[[xr.Dataset], Payload]:
    """The function that reads from a dataset what a figure asks for.

    Args:
        figure: an entry of `FIGURES`.
        names: part to the array, the axis or the attribute that it is; the others have its name.
    """
    parts = get_type_hints(FIGURES[figure], include_extras=True)
    return lambda data: {
        part: _read(data, names.get(part, part), asked) for part, asked in parts.items()
    }


def _read(data: xr.Dataset, name: str, asked: Any) -> Any:
    if name in data.attrs and name not in data.variables:  # there a list is a text
        return np.asarray(data.attrs[name]).item()
    if not hasattr(asked, "__metadata__"):
        return data[name].values.tolist()
    axes, *places = asked.__metadata__
    values = data[name].transpose(*axes.split())
    return decimals(values, *places) if places else exact(values)


# ---- arrays of a payload: plain JSON, base64, little-endian


def exact(values: Any) -> Packed:
    """An array as float64, bit for bit."""
    return _packed(np.asarray(values), "<f8", 0)


def decimals(values: Any, places: int) -> Packed:
    """An array to so many decimals, as integers; nan and infinities become the outermost ones."""
    scaled = np.round(np.asarray(values, dtype=float) * 10.0**places)
    limits = np.iinfo(np.int32)
    whole = np.where(np.isnan(scaled), limits.min, np.clip(scaled, -limits.max, limits.max))
    return _packed(whole, "<i4", places)


def _packed(values: Any, kind: str, places: int) -> Packed:
    text = base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()
    return {"shape": list(np.shape(values)), "kind": kind, "places": places, "base64": text}


def unpacked(packed: Mapping[str, Any]) -> Any:
    """The array in a payload, as the browser reads it."""
    stored = np.frombuffer(base64.b64decode(packed["base64"]), packed["kind"])
    if packed["kind"] == "<f8":
        return stored.reshape(packed["shape"])
    edge = np.iinfo(np.int32).max
    values = np.where(np.abs(stored) == edge, np.copysign(np.inf, stored), stored.astype(float))
    values = np.where(stored < -edge, np.nan, values) / 10.0 ** packed["places"]
    return values.reshape(packed["shape"])


# ---- what each figure asks for; a Packed array is given with its axes, and its decimals if rounded


class Chain(TypedDict):
    """A product of equal factors against depth, one line for each weight w."""

    w: Packed  # (w,), increasing
    layer: list[int]  # the depths, increasing
    log10: Packed  # (w, layer), log10 of the product's magnitude
    views: list[int]  # how far the depth axis may reach, each one of `layer`, increasing


class Edge(TypedDict):
    """The magnitudes, log10, at which a format has 0 and infinity; None where it never did."""

    format: str
    floor: float | None
    ceiling: float | None


class FormatEnds(TypedDict):
    """The depth at which each number format fails on the line of w; drawn into the chain.

    A depth is infinite where the format never failed. Weights that the chain lacks are not shown,
    and those that only the chain has are shown as not computed.
    """

    formats: list[str]
    w: Packed  # (w,)
    first_zero: Packed  # (format, w)
    first_infinite: Packed  # (format, w)
    first_wrong: Packed  # (format, w), first depth that is 1 % wrong
    edges: list[Edge]  # one for each format, the widest format last


class Network(TypedDict):
    """The gradient on its way back through random networks of two kinds."""

    activations: list[str]
    kinds: list[str]  # two: plain networks, of which theory speaks, and others beside them
    sigma_w: Annotated[Packed, "sigma_w"]  # increasing
    back: list[int]  # layers back from the last, increasing
    median: Annotated[Packed, "activation kind sigma_w back", 3]  # log10 over draws
    low: Annotated[Packed, "activation kind sigma_w back", 3]  # its lower quartile
    high: Annotated[Packed, "activation kind sigma_w back", 3]  # its upper quartile
    predicted: Annotated[Packed, "activation sigma_w back", 3]  # log10 by theory
    chi_1: Annotated[Packed, "activation sigma_w"]
    width: int
    num_draws: int


class Map(TypedDict):
    """The loss over the plane of two parameters."""

    w: list[float]  # its first and last value
    b: list[float]  # its first and last value
    loss: Packed  # (b, w)


class Clipping(TypedDict):
    """Gradient descent in two parameters, one run for each threshold tau."""

    tau: Packed  # (tau,), increasing, the last one infinite: no clipping
    num_steps: int
    w: Packed  # (tau, step)
    b: Packed  # (tau, step)
    loss: Packed  # (tau, step)
    gradient_norm: Packed  # (tau, step), before clipping
    clipped_norm: Packed  # (tau, step), after it
    step_size: Packed  # (tau, step)
    map: Map
    meets: int  # the step that is shown first


class Branch(TypedDict):
    """What is left of one number a layer, log10, over w: the factor is w, 1 + w or 1 + w/L."""

    w: Packed  # (w,), increasing, with -1 and 0 among them
    depths: list[int]  # L, increasing
    plain: Packed  # (depth, w), -inf where nothing is left
    residual: Packed  # (depth, w)
    small: Packed  # (depth, w)


class Moved(TypedDict):
    """How far each layer of a network has moved in training, of each of three kinds."""

    kinds: list[str]  # three: plain, clipped, residual
    layer: list[int]
    steps: list[int]  # taken, increasing
    log10_moved: Packed  # (kind, step, layer), of the way over the size at the start
    num_runs: int


FIGURES: dict[str, Any] = {
    "chain": Chain,
    "format ends": FormatEnds,
    "network": Network,
    "clipping": Clipping,
    "branch": Branch,
    "moved": Moved,
}
