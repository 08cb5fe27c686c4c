"""What the grammar of sweeps says besides what Hydra's does: spaced values, and right ranges.

`geomspace`, `linspace` and `logspace` are numpy's; a key that counts takes the nearest whole
numbers. `range` refuses a step of 0, and `sort` of a range sorts the values that it has.
"""

# Hydra compares what a function is given with its annotations, which must be types and no texts.
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra._internal.grammar import grammar_functions
from hydra.core.override_parser import overrides_parser
from hydra.core.override_parser.types import ChoiceSweep, Quote, QuotedString, RangeSweep

from gradlab.errors import BadInput
from gradlab.lazy import np

_hydras_own = overrides_parser.create_functions

# So many values, each of which is checked before anything is computed, an axis may have.
MOST_VALUES = 10**6

# `zip(depth,width)`: two swept keys that go along together.
_ZIP = re.compile(r"zip\(\s*([\w./]+(?:\s*,\s*[\w./]+)+)\s*\)")


@dataclass
class Spaced(ChoiceSweep):
    """Values that a function of numpy spaced."""


def extend() -> None:
    """Teach Hydra's parser the functions of this room; again is the same as once."""
    overrides_parser.create_functions = _functions


def _functions() -> Any:
    functions = _hydras_own()
    own: dict[str, Callable[..., Any]] = {
        "linspace": linspace,
        "geomspace": geomspace,
        "logspace": logspace,
    }
    own |= {"range": stepped, "sort": ordered}
    for name, function in own.items():
        functions.definitions.pop(name, None)
        functions.register(name=name, func=function)
    return functions


def linspace(start: Any, stop: Any, num: Any) -> Spaced:
    """Evenly spaced values, both ends among them."""
    _check("linspace", start, stop, num)
    return Spaced(list=np.linspace(start, stop, num).tolist())


def geomspace(start: Any, stop: Any, num: Any) -> Spaced:
    """Values spaced evenly over their logarithm, both ends among them."""
    _check("geomspace", start, stop, num)
    if start * stop <= 0:
        raise BadInput(
            f"geomspace({start},{stop},{num}) has an end at 0, or on either side of it; "
            "allowed: two ends above 0, or two below"
        )
    return Spaced(list=np.geomspace(start, stop, num).tolist())


def logspace(start: Any, stop: Any, num: Any) -> Spaced:
    """Powers of ten whose exponents are spaced evenly."""
    _check("logspace", start, stop, num)
    with np.errstate(over="ignore"):
        return Spaced(list=np.logspace(start, stop, num).tolist())


def stepped(start: Any, stop: Any = None, step: Any = 1) -> RangeSweep | ChoiceSweep:
    """From `start` to before `stop`; from 0 where one number is given."""
    start, stop = (0, start) if stop is None else (start, stop)
    text, numbers = f"range({start},{stop},{step})", (start, stop, step)
    if not all(map(_is_finite, numbers)):
        raise BadInput(f"{text} is no list of numbers; allowed: range(FIRST,BEFORE,STEP)")
    if step == 0:
        raise BadInput(f"{text} has the step 0; allowed: a step above or below 0")
    if (stop - start) / step <= 0:
        raise BadInput(
            f"{text} names nothing; allowed: a step that leads from the first number to the second"
        )
    if all(isinstance(one, int) for one in numbers):
        return RangeSweep(start=start, stop=stop, step=step)
    if not (stop - start) / step <= MOST_VALUES:
        raise BadInput(
            f"{text} names more values than there may be; allowed: at most {MOST_VALUES}"
        )
    # In decimals, as they were typed: 1.3, 0.8 and 0.3, and not a digit beside it.
    first, end, by = (Decimal(repr(one)) for one in numbers)
    return ChoiceSweep(
        list=[float(first + by * row) for row in range(math.ceil((end - first) / by))]
    )


def ordered(*values: Any, **how: Any) -> Any:
    """The values in order; of a range those that it has, from whichever end it comes."""
    if len(values) == 1 and isinstance(values[0], RangeSweep):
        return ChoiceSweep(list=sorted(values[0].range(), reverse=bool(how.get("reverse"))))
    return grammar_functions.sort(*values, **how)


def _check(name: str, start: Any, stop: Any, num: Any) -> None:
    text = f"{name}({start},{stop},{num})"
    whole = isinstance(num, int) and not isinstance(num, bool)
    if not (_is_finite(start) and _is_finite(stop) and whole and num >= 1):
        raise BadInput(f"{text} is no list of numbers; allowed: {name}(FIRST,LAST,HOW_MANY)")
    if num > MOST_VALUES:
        raise BadInput(f"{text} names too many values; allowed: at most {MOST_VALUES}")


def _is_finite(end: Any) -> bool:
    return isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)


# ---- values in it

# A text that needs no quotes in Hydra's grammar, and words that are no text there.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_NO_TEXT = ("null", "true", "false", "inf", "nan")


def element(value: Any) -> Any:
    """A plain value as an element of the grammar: what a text would mean otherwise, in quotes."""
    is_word = isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _NO_TEXT
    return QuotedString(value, Quote.single) if isinstance(value, str) and not is_word else value


# ---- what is no override in it


def for_hydra(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The overrides with `zip(...)` and `points=[...]` as the sweeper's own keys.

    `keys` are the experiment's, of which one may be called `points`.
    """
    zips = [match[1] for word in words if (match := _ZIP.fullmatch(word.strip()))]
    found = [word for word in words if not _ZIP.fullmatch(word.strip())]
    if "points" not in keys:
        found = [re.sub(r"^points=", "hydra.sweeper.points=", word) for word in found]
    groups = ",".join(f"[{re.sub(r'[ ]', '', group)}]" for group in zips)
    return [*found, f"hydra.sweeper.zip=[{groups}]"] if zips else found


def spelled(values: Sequence[Any]) -> str:
    """The words for numbers that a function spaces to their last bit; empty for none."""
    if isinstance(values, range):
        return f"range({values.start},{values.stop},{values.step})".replace(",1)", ")")
    if any(np.ndim(value) for value in values if not isinstance(value, str)):
        return ""  # lists, of which one may be longer than another
    held = np.asarray(values)
    if held.ndim != 1 or held.size < 4 or held.dtype.kind not in "iuf":
        return ""
    if held.dtype.kind != "f":
        step = int(held[1]) - int(held[0])
        stops = range(int(held[0]), int(held[-1]) + step, step) if step else ()
        return spelled(stops) if list(stops) == held.tolist() and isinstance(stops, range) else ""
    same = (text for text, made in _spacings(held) if np.array_equal(made, held))
    return next(same, "")


def _spacings(held: Any) -> Iterator[tuple[str, Any]]:
    first, last, size = float(held[0]), float(held[-1]), held.size
    if not np.isfinite(held).all():
        return
    yield f"linspace({first!r},{last!r},{size})", np.linspace(first, last, size)
    if first * last > 0:
        yield f"geomspace({first!r},{last!r},{size})", np.geomspace(first, last, size)
        low, high = (round(float(np.log10(abs(end))), 9) for end in (first, last))
        yield f"logspace({low!r},{high!r},{size})", np.logspace(low, high, size)
