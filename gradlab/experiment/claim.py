"""From numbers to a verdict: a sentence, what was measured, what is expected, and by how much.

A claim over an array is about its worst entry, which is judged by its own tolerance, cause by
cause. `everywhere` finds that entry; the other functions say common laws shorter.

Draws are sampled, so chance alone may break a true claim. `estimate.Sampling` makes a standard
error a cause of the tolerance, wide enough for all entries together; the claim states its chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import xarray as xr
from scipy import stats

from gradlab.errors import BadInput
from gradlab.experiment import estimate

Relation = Literal["=", "<=", ">="]
_RELATIONS = get_args(Relation)

# What `ensembles.realised` says of weights, in words.
MOMENTS = ("mean", "square", "fourth power", "neighbours", "layers apart", "mirrored")


@dataclass(frozen=True)
class Claim:
    """A sentence held against a number: `measured` `relation` `expected`, within the tolerance.

    Attributes:
        sentence: the statement, as a reader would say it.
        measured: the number that the dataset gives.
        expected: the number that the source or the theory gives.
        tolerance: cause to amount, in the unit of `measured`; the amounts add up.
        source: where the statement is made (author, year, equation).
        relation: "=" for agreement, "<=" and ">=" for a bound on one side.
        at: which entry of an array this is, in words; empty for a single number.
        chance: the probability, at most, with which the sampling of draws alone breaks the claim
            when the statement is true; 0 for what no draw can change.
    """

    sentence: str
    measured: float
    expected: float
    tolerance: Mapping[str, float]
    source: str
    relation: Relation = "="
    at: str = ""
    chance: float = 0.0

    def __post_init__(self) -> None:
        """Plain floats, whatever array type they came in.

        Raises:
            BadInput: a part is not of its kind; the sentence says which claim.
        """
        self._check()
        object.__setattr__(self, "measured", float(self.measured))
        object.__setattr__(self, "expected", float(self.expected))
        object.__setattr__(self, "chance", float(self.chance))
        tolerance = {cause: float(amount) for cause, amount in self.tolerance.items()}
        object.__setattr__(self, "tolerance", tolerance)
        if any(not amount >= 0 for amount in tolerance.values()):
            raise BadInput(
                f"claim '{self.sentence}' has the tolerance {tolerance}; allowed: at least 0"
            )

    def _check(self) -> None:
        def refused(what: str, allowed: str) -> BadInput:
            return BadInput(f"claim '{self.sentence}' has {what}; allowed: {allowed}")

        if self.relation not in _RELATIONS:
            raise refused(f"the relation {self.relation!r}", ", ".join(_RELATIONS))
        if not isinstance(self.tolerance, Mapping):
            raise refused(f"the tolerance {self.tolerance!r}", "a dict of cause to amount")
        for name in ("measured", "expected"):
            if np.size(getattr(self, name)) != 1:
                shape = np.shape(getattr(self, name))
                raise refused(
                    f"a {name} value of shape {shape}",
                    "one number; gl.claim.everywhere takes arrays",
                )
        if not (np.size(self.chance) == 1 and 0 <= self.chance < 1):
            raise refused(f"the chance {self.chance!r}", "a probability, at least 0 and below 1")

    @property
    def holds(self) -> bool:
        """The verdict; infinities must agree exactly, and nan never agrees with anything."""
        if self.measured == self.expected:
            return True
        allowed = sum(self.tolerance.values())
        off = self.measured - self.expected
        if not math.isfinite(off):
            return {"<=": off == -math.inf, ">=": off == math.inf, "=": False}[self.relation]
        return {"<=": off <= allowed, ">=": -off <= allowed, "=": abs(off) <= allowed}[
            self.relation
        ]

    def record(self) -> dict[str, Any]:
        """The claim and its verdict as JSON holds them; inf and nan as text, which JSON lacks."""
        plain = dataclasses.asdict(self) | {"verdict": "holds" if self.holds else "fails"}
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }


def everywhere(
    sentence: str,
    measured: Any,
    expected: Any,
    source: str,
    *,
    relation: Relation = "=",
    where: Any = True,
    chance: float = 0.0,
    **causes: Any,
) -> Claim:
    """The claim about every entry of an array: its worst one, judged by that entry's tolerance.

    The worst is what is farthest beyond its expected value in units of its own tolerance; nan is
    worse than anything. Arrays are matched by the names of their axes.

    Args:
        sentence: the statement.
        measured: a labelled array, or a number.
        expected: the same, or what broadcasts against it.
        source: where the statement is made.
        relation: as of `Claim`.
        where: which entries the statement is about, all (True) or a labelled array of bool.
        chance: the probability, at most, that draws break the claim at any entry in a way that no
            `Sampling` speaks for: of a bound that random numbers stay below nearly always.
        causes: cause to amount, numbers or arrays; `rounding_of_w=...` is shown as "rounding of w".
            An amount may be a `Sampling`: it is made wide enough for all the entries that the
            statement is about, and its chance (half of it for a bound on one side) is the claim's.

    Raises:
        ValueError: the statement is about no entry at all.
    """
    samplings = {cause: one for cause, one in causes.items() if isinstance(one, estimate.Sampling)}
    errors = {cause: one.standard_error for cause, one in samplings.items()}
    skewed = {f"{cause} skewness": one.skewness for cause, one in samplings.items()}
    named = {"measured": measured, "expected": expected, "where": where} | causes | errors | skewed
    arrays = dict(zip(named, xr.broadcast(*map(xr.DataArray, named.values())), strict=True))
    held = arrays.pop("where").astype(bool)
    if not bool(held.any()):
        raise ValueError(f"claim '{sentence}' is about no entry; allowed: at least one")
    side = 1.0 - 2.0 * (arrays["measured"] < arrays["expected"])
    for cause, one in samplings.items():
        error, skewness = arrays[cause], arrays[f"{cause} skewness"]
        of_each = dataclasses.replace(one, standard_error=error, skewness=skewness)
        arrays[cause] = of_each.amount(int(held.sum()), side)
    amounts = [arrays[cause] for cause in causes]
    off = _excess(arrays["measured"].values, arrays["expected"].values, relation)
    allowed = np.asarray(sum(amount.values for amount in amounts), dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(off == 0, 0.0, off / np.broadcast_to(allowed, off.shape))
    # Where nothing is allowed all that is off is equally bad: then the farthest tells most.
    rank = [np.where(np.isnan(part), np.inf, part).ravel() for part in (off, share)]
    worst = np.unravel_index(np.lexsort((*rank, held.values.ravel()))[-1], off.shape)
    value, wanted, *allowed_there = (
        float(array.values[worst]) for array in (arrays["measured"], arrays["expected"], *amounts)
    )
    if np.isnan(value) or np.isnan(wanted):  # it fails, and what was allowed may be nan with it
        allowed_there = [0.0 if np.isnan(amount) else amount for amount in allowed_there]
    tolerance = dict(zip((cause.replace("_", " ") for cause in causes), allowed_there, strict=True))
    sides = 2 if relation == "=" else 1
    chance += sum(one.chance for one in samplings.values()) * sides / 2
    at = _place(arrays["measured"], worst)
    return Claim(sentence, value, wanted, tolerance, source, relation, at, chance)


def at_most(sentence: str, measured: Any, bound: Any, source: str, **causes: Any) -> Claim:
    """The claim that no entry is above its bound, beyond what the causes allow."""
    return everywhere(sentence, measured, bound, source, relation="<=", **causes)


def at_least(sentence: str, measured: Any, bound: Any, source: str, **causes: Any) -> Claim:
    """The claim that no entry is below its bound, beyond what the causes allow."""
    return everywhere(sentence, measured, bound, source, relation=">=", **causes)


def equal(
    sentence: str, measured: Any, expected: Any, source: str, *, chance: float = 0.0
) -> Claim:
    """The claim that every entry is exactly what is expected, an infinity or a zero too."""
    return everywhere(sentence, measured, expected, source, chance=chance)


def always(sentence: str, true: Any, source: str, *, chance: float = 0.0) -> Claim:
    """The claim that something is true of every entry; the share of which it is true must be 1."""
    share = float(np.mean(np.asarray(true, dtype=bool)))
    return Claim(sentence, share, 1.0, {}, source, chance=chance)


def mean(
    sentence: str,
    draws: Any,
    expected: Any,
    source: str,
    *,
    over: str = "draw",
    relation: Relation = "=",
    where: Any = True,
    chance: float = 0.0,
    **causes: Any,
) -> Claim:
    """The claim about the mean over the axis `over`, at every place along the other axes.

    Sampling is the first of its causes: as many standard errors, which are estimated from the same
    draws, as make it no more likely than `NUM_ERRORS` of a normal that any place is beyond them,
    more on the side where a mean of skewed draws is farther off. Draws that were used twice have
    an error that cannot be known: then the claim fails.
    """
    rows = draws.transpose(over, ...).values
    with np.errstate(invalid="ignore"):
        value, error = estimate.mean(rows)
    # The spread of one draw, or of some that are not finite, is not known: none is allowed for.
    known = np.isfinite(rows).all(axis=0) & (len(rows) > 1)
    error, skewness = np.where(known, error, 0.0), estimate.skewness(rows)
    if _are_twins(rows):
        value = np.full_like(value, np.nan)
    like = draws.isel({over: 0}, drop=True)
    of_mean = estimate.Sampling(
        like.copy(data=np.asarray(error)), max(2, len(rows)), skewness=like.copy(data=skewness)
    )
    return everywhere(
        sentence,
        like.copy(data=np.asarray(value)),
        expected,
        source,
        relation=relation,
        where=where,
        chance=chance,
        **{"sampling": of_mean} | causes,
    )


def _are_twins(rows: Any) -> bool:
    """Whether every row has another of the same bits (one may be over), while not all are alike."""
    alike = Counter(np.ascontiguousarray(row).tobytes() for row in rows)
    single = sum(number == 1 for number in alike.values())
    return len(alike) > 1 and single <= len(rows) % 2


def weights(
    moments: Any,
    source: str,
    *,
    of: str = "weights",
    variance: Any = 1.0,
    excess: Any = 0.0,
    over: str = "draw",
) -> Claim:
    """The claim that weights were drawn as is said, each layer's by itself, by their moments.

    Args:
        moments: `ensembles.realised` of several draws, along the axis `moment`. Of continuous
            weights no two draws have the same, so the claim fails where two do.
        source: where it is said.
        of: whose they are, where an experiment has several such claims.
        variance: n Var W, n being the fan-in; a number or a labelled array, and so is
        excess: the excess kurtosis of W, 0 if it is normal.
        over: the axis of the draws.
    """
    v = xr.DataArray(variance)
    laws = xr.broadcast(0 * v, v, (3 + xr.DataArray(excess)) * v**2, *[0 * v] * 3)
    words = {"moment": list(MOMENTS)}
    expected = xr.concat(laws, "moment").assign_coords(words)
    sentence = f"{of} are drawn as is said: powers 1, 2, 4 of W √n, all layers alike, independent"
    moments = moments.assign_coords(words)
    few_values = (v == 0) | (xr.DataArray(excess) == -2)  # of which chance may draw the same again
    fresh = moments.where(few_values | ~_has_repeats(moments, over))
    return mean(sentence, fresh, expected, source, over=over)


def _has_repeats(moments: Any, over: str) -> xr.DataArray:
    """Whether two draws have the very same moments, at every place along the other axes."""
    rows = moments.transpose(..., over, "moment")
    places = np.ascontiguousarray(rows.values).reshape(-1, *rows.shape[-2:])
    same = [len({row.tobytes() for row in place}) < len(place) for place in places]
    like = rows.isel({over: 0, "moment": 0}, drop=True)
    return like.copy(data=np.reshape(same, like.shape))


def backpropagated(first: Any, *, kinked: Sequence[float]) -> Claim:
    """The claim that a training's first losses, gradients and steps are those by hand.

    Args:
        first: of `backpropagation.first_steps`, its three ways along the axis `way`.
        kinked: numbers whose product is that of the sums that any relu sees in a step, times terms
            of each; 0 of a smooth activation. One may be so near 0 that the two ways have it on
            either side of the kink: of so many eps are, in the mean.

    A step that no number can hold, by hand, is not judged.
    """
    seen, hand, rounding = first.transpose("way", ...)
    of_a_step = float(np.finfo(first.dtype).eps) * math.prod(map(float, kinked))
    return everywhere(
        "the first losses, norms of gradients and steps are those of backpropagation by hand",
        *(seen, hand, "Rumelhart, Hinton and Williams 1986; gradlab.measuring.backpropagation"),
        where=np.isfinite(hand),  # a training may diverge
        chance=min(0.5, first.sizes["first_step"] * of_a_step),
        rounding=rounding.fillna(0.0),
    )


def step_lengths(
    step_size: Any, gradient: Any, limit: Any, rate: Any, num_entries: float, source: str
) -> Claim:
    """The claim that every step of descent is the rate times its gradient long, or the limit.

    Args:
        step_size: lengths of steps, a labelled array.
        gradient: norms of the gradients before any clip.
        limit: what they are clipped to, infinite where they are not.
        rate: the learning rate.
        num_entries: of all parameters.
        source: where the clip is defined.

    A step that no number can hold is not judged: a training may diverge.
    """
    asked = rate * np.minimum(gradient, limit)
    eps = float(np.finfo(step_size.dtype).eps)
    return everywhere(
        "every step is the learning rate times its gradient long, or times its threshold if less",
        *(step_size, asked, source),
        where=np.isfinite(asked),
        # The root of a rounded sum of squares (Higham 2002, section 3.1), here and there, of
        # entries that are rounded when they are clipped and when they are multiplied by the rate.
        rounding_of_sums=num_entries / 2 * eps * asked,
        rounding_of_entries=4 * eps * asked,
    )


def chi_squared(sentence: str, scores: Any, source: str) -> Claim:
    """The claim that scores, each a standard normal, have the sum of squares that they should.

    Allowed is up to the quantiles of chi squared that are as likely as `NUM_ERRORS` of a normal.
    """
    degrees, tail = np.size(scores), stats.norm.sf(estimate.NUM_ERRORS)
    total = float(np.sum(np.square(scores)))
    limit = stats.chi2.isf(tail, degrees) if total > degrees else stats.chi2.ppf(tail, degrees)
    sampling = {"sampling": abs(limit - degrees)}
    return Claim(sentence, total, degrees, sampling, source, chance=2 * tail)


def gain(sentence: str, gained: Any, source: str, *, over: str = "draw") -> Claim:
    """The claim that what is gained, pair by pair along `over`, is above 0 in the mean everywhere.

    Chance is what Student's t gives to no gain at all, with one spread for all places. It fails
    where exactly nothing is gained, and for pairs that were used twice, whose spread is not known.
    """
    won, num = gained.mean(over), gained.sizes[over]
    won = won.where((won != 0) & (not _are_twins(gained.transpose(over, ...).values)))
    error = np.sqrt(gained.var(over).mean() / (num - 1)) if num > 1 else np.nan
    by_chance = float(np.sum(estimate.tail(won / error, max(1, gained.size - won.size))))
    return at_least(sentence, won, 0.0, source, chance=min(0.5, by_chance))


def guessing(num_classes: int, batch_size: int, num_batches: int) -> dict[str, Any]:
    """The causes for which the loss of who guesses is off ln num_classes in so many batches."""
    gained = estimate.label_gain(num_classes, batch_size, max(1, num_batches))
    return {"labels_of_a_batch": gained.value, "sampling": estimate.Sampling(gained.error)}


def slope(sentence: str, x: Any, y: Any, expected: Any, source: str, **causes: Any) -> Claim:
    """The claim about the least-squares slope of y over x, x being y's last axis, at every row."""
    value: Any = np.asarray(estimate.slope(x, y).value)
    rows = (
        y.isel({y.dims[-1]: 0}, drop=True) if isinstance(y, xr.DataArray) else xr.DataArray(value)
    )
    return everywhere(sentence, rows.copy(data=value), expected, source, **causes)


def first_depth(
    sentence: str,
    measured: Any,
    predicted: Any,
    source: str,
    *,
    deepest: float,
    where: Any = True,
    chance: float = 0.0,
    **causes: Any,
) -> Claim:
    """The claim about the depth at which something first happens, infinite where it never does.

    What was not seen, or is not expected, down to the layer `deepest` counts as one layer below it,
    since nothing was looked at there.
    """
    beyond = deepest + 1.0
    seen, awaited = (np.minimum(one, beyond) for one in (measured, predicted))
    amounts = {cause: estimate.within(amount, beyond) for cause, amount in causes.items()}
    return everywhere(sentence, seen, awaited, source, where=where, chance=chance, **amounts)


def _excess(measured: Any, expected: Any, relation: Relation) -> Any:
    """How far each entry is beyond what is expected, 0 where it is not; nan where unknown."""
    measured, expected = np.asarray(measured, dtype=float), np.asarray(expected, dtype=float)
    with np.errstate(invalid="ignore"):  # inf - inf, of two that are equal
        off = np.where(measured == expected, 0.0, measured - expected)
    return {"=": np.abs(off), "<=": np.maximum(off, 0.0), ">=": np.maximum(-off, 0.0)}[relation]


def _place(array: xr.DataArray, index: tuple[Any, ...]) -> str:
    """The entry in words: `w = 0.9, layer = 50`."""
    words = []
    for dim, at in zip(array.dims, index, strict=True):
        value = array[dim].values[at] if dim in array.coords else at
        words.append(f"{dim} = {value}" if isinstance(value, str) else f"{dim} = {value:g}")
    return ", ".join(words)
