"""Checks of what flows through a model: states forwards, gradients back, against theory."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from gradlab.diagnosis import changes, laws, operations
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.facts import Facts, chains, streams
from gradlab.diagnosis.measures import Measured
from gradlab.diagnosis.verdicts import Verdict
from gradlab.theory import meanfield

_SATURATING = {"tanh", "logistic", "erf", "softsign", "hard_tanh"}
_LARGEST_SLOPE = {"logistic": 1 / 16, "erf": 4 / math.pi}
_PER_LAYER = 1e-6  # of the gradient, a layer leaves more than that where it is not stopped
_MOST_RATIO = meanfield.DEPTH_SCALES / 2  # of norms


def finite_gradients(facts: Facts) -> Iterator[Verdict]:
    """A gradient that is nan or inf where the loss is not: the last state before it is."""
    gradients = facts.measured.layers.get("log_gradient", np.zeros(0))
    bad = [k for k, g in enumerate(gradients) if math.isnan(g) or g == math.inf]
    if math.isfinite(facts.measured.loss) and bad:
        yield Verdict(
            "not finite",
            facts.layers[bad[-1]].name,
            float(len(bad)),
            0.0,
            0.0,
            0.0,
            "The loss is finite, but the gradient that arrives at this layer's output is not: an "
            "operation behind it has no finite derivative at this state (√ or log or a norm at 0).",
            tuple(changes.guard(name) for name in facts.at_the_edge()),
        )


def gain(facts: Facts) -> Iterator[Verdict]:
    """Weights too small or too large for their activation: chi at realised scales, by chain."""
    for run in chains(facts.anatomy):
        has_output = facts.layers[run[-1]].activated is None
        counted = run[1:-1] if has_output and len(run) > 3 else run[1:]
        before = run[: len(counted)]
        slopes = [_slope(facts, k) for k in before]
        if not counted or not all(s > 0 for s in slopes):  # no slope at all: `flat` says so
            continue
        sigma_w = [facts.sigma_w(k) for k in counted]
        if min(sigma_w) == 0:  # a matrix that is 0 has no size
            continue
        total = laws.log_gain(sigma_w, slopes)
        spreads = [
            0.0 if s == 1 else facts.of_layer("spread", k)
            for k, s in zip(before, slopes, strict=True)
        ]
        spare = facts.z * laws.gain_error(spreads, [facts.layers[k].fan_in for k in counted])
        num = len(counted)
        allowed = math.exp((meanfield.DEPTH_SCALES + spare) / (2 * num))
        phi = facts.phis[run[0]] or "no activation"
        size = "small" if total < 0 else "large"
        per_layer = math.exp(total / (2 * num)) if math.isfinite(total) else math.nan
        name = _common(facts, counted)
        typical = math.exp(float(np.mean(np.log(np.maximum(sigma_w, 1e-300)))))
        yield Verdict(
            "gain",
            name,
            per_layer,
            1.0,
            1 / allowed,
            allowed,
            f"Weights are too {size} for {phi}: √fan_in times their standard deviation is "
            f"{typical:.3g}, and each of {num} layers multiplies the gradient by {per_layer:.3g}.",
            tuple(changes.scale(role, 1 / per_layer) for role in _roles(facts, counted))
            if 0 < per_layer < math.inf
            else (),
            tune=True,
        )


def gain_over_time(facts: Facts) -> Iterator[Verdict]:
    """A recurrent matrix through which the gradient vanishes whatever phi does, or explodes.

    phi' is 1 at most, so that chi is at most sigma_w² a step; gates and residual sums keep a state
    in another way. Exploding is measured, since phi saturates.
    """
    anatomy = facts.anatomy
    gradients = facts.measured.layers.get("log_gradient", np.zeros(0))
    summed = {i for residual in anatomy.residuals for i in residual.layers}
    for name, times in _times(facts).items():
        if anatomy.gates or summed & set(times) or len(times) < 3:
            continue
        # A derivative inside the loss uses a weight both ways round.
        if len({facts.layers[k].out_axes for k in times}) > 1:
            continue
        if times[1] not in _fed(facts, times[0]):
            continue
        num, sigma_w = len(times) - 1, facts.sigma_w(times[0])
        rise = float(gradients[times[0]]) - float(gradients[times[-1]])
        allowed = math.exp(meanfield.DEPTH_SCALES / (2 * num))
        explodes = 2 * rise > meanfield.DEPTH_SCALES and sigma_w > 1
        yield Verdict(
            "gain",
            name,
            sigma_w,
            1.0,
            1 / allowed,
            allowed if explodes else math.inf,
            f"The matrix of a loop has √fan_in times its standard deviation at {sigma_w:.3g}: over "
            f"{num} steps the gradient "
            + (f"grows {math.exp(min(rise, 700)):.3g} times." if explodes else "vanishes."),
            (changes.scale(name, 1 / sigma_w),) if sigma_w > 0 else (),
        )


def _times(facts: Facts) -> dict[str, list[int]]:
    """The layers that have one weight, by its name."""
    found: dict[str, list[int]] = defaultdict(list)
    for k, layer in enumerate(facts.layers):
        found[layer.name].append(k)
    return found


def _fed(facts: Facts, k: int) -> set[int]:
    """The layers whose state depends on layer k."""
    steps = set(operations.reached(facts.anatomy.program, facts.layers[k].product))
    return {i for i, layer in enumerate(facts.layers) if layer.step in steps}


def _slope(facts: Facts, k: int) -> float:
    """E phi'² behind layer k; 1 where nothing is between it and the next layer."""
    return 1.0 if facts.layers[k].activated is None else facts.of_layer("slope", k)


def _common(facts: Facts, run: Sequence[int]) -> str:
    roles = _roles(facts, run)
    return roles[0] if len(roles) == 1 else facts.layers[run[0]].name


def _roles(facts: Facts, run: Sequence[int]) -> list[str]:
    """The roles of layers, each once, in order; a name where a role has one member."""
    return list(dict.fromkeys(starred(facts.layers[k].name) for k in run))


def flat(facts: Facts) -> Iterator[Verdict]:
    """Units that have no slope on the whole batch: dead ones."""
    for k, layer in enumerate(facts.layers):
        share = facts.of_layer("flat", k)
        if not has_units_to_lose(facts, k):
            continue
        num = min(layer.fan_out, 10**6)
        most = laws.most_flat(num, facts.z)
        clipped = next((s.name for s in layer.phi if s.name in {"min", "clamp"}), None)
        change = [changes.fill(facts.pattern(name), 0.0) for name in facts.bias_names(layer)]
        if clipped and share == 1:
            change = [changes.straight_through(f"{clipped}@{layer.name}")]
        yield Verdict(
            "flat",
            layer.name,
            share,
            0.5,
            0.0,
            most if num > 4 * facts.z**2 or most < 1 else 1 - 1e-9 if num >= 16 else 1.0,
            f"{share:.0%} of its units have no slope on any example of the batch"
            + (": none passes a gradient." if share == 1 else "."),
            tuple(change) if change else (changes.redraw(layer.name, layer.fan_in**-0.5),),
        )


def has_units_to_lose(facts: Facts, k: int) -> bool:
    """Whether a layer has an activation whose units may have no slope, one by one.

    Of tanh and its like `saturated` says it; of one that stops every unit's `no gradient`.
    """
    is_stopped = any(s.name in operations.STOPPING - {"min", "clamp"} for s in facts.layers[k].phi)
    is_known = not math.isnan(facts.of_layer("flat", k))
    return is_known and facts.phis[k] not in _SATURATING and not is_stopped


def saturated(facts: Facts) -> Iterator[Verdict]:
    """An activation that works where it has no slope left."""
    of_gates = {k for gate in facts.anatomy.gates for k in gate.layers}
    for k, layer in enumerate(facts.layers):
        if facts.phis[k] not in _SATURATING or (facts.phis[k] == "logistic" and k in of_gates):
            continue
        share = facts.of_layer("slope", k) / _LARGEST_SLOPE.get(facts.phis[k], 1.0)
        rms, mean = math.exp(facts.of_layer("log_pre", k)), abs(facts.of_layer("mean_pre", k))
        biased = mean > 0.7 * rms and layer.biases
        change = (
            tuple(changes.fill(facts.pattern(name), 0.0) for name in facts.bias_names(layer))
            if biased
            else (changes.scale(facts.pattern(layer.name), 1 / rms),)
            if 0 < rms < math.inf
            else ()
        )
        yield Verdict(
            "saturated",
            layer.name,
            share,
            1.0,
            0.1,
            math.inf,
            f"Its {facts.phis[k]} is saturated: pre-activations have a root mean square of "
            f"{rms:.3g}, and the mean squared slope is {share:.2g} of the largest."
            + _large_input(facts, k),
            change,
        )


def _large_input(facts: Facts, k: int) -> str:
    """A sentence where what a layer reads is large, and not its weights."""
    rms = math.exp(min(facts.of_layer("log_state", k), 700))
    is_large = rms > 10 and facts.sigma_w(k) < 10
    return f" What it reads has a root mean square of {rms:.3g}: normalise it." if is_large else ""


def drowned(facts: Facts) -> Iterator[Verdict]:
    """A parameter that is added to a state, and is much larger than it."""
    numbers = facts.measured.shifts
    for k, shift in enumerate(facts.anatomy.shifts):
        log = float(numbers["log_added"][k]) - float(numbers["log_state"][k])
        if not math.isfinite(log):  # nothing is drowned where all is 0
            continue
        ratio, names = math.exp(min(log, 700)), [facts.anatomy.names[p] for p in shift.params]
        yield Verdict(
            "drowned",
            names[0],
            ratio,
            1.0,
            0.0,
            laws.MOST_DROWNED,
            f"It is {ratio:.3g} times as large as the state that it is added to, so that what is "
            "behind hardly depends on the input.",
            tuple(changes.scale(facts.pattern(name), 1 / ratio) for name in names),
        )


# ---- residual streams


def norm_place(facts: Facts) -> Iterator[Verdict]:
    """Norms on the stream itself (post-norm), through which the gradient changes with depth."""
    for run in streams(facts.anatomy):
        residuals = [facts.anatomy.residuals[k] for k in run]
        if sum(r.normed for r in residuals) < len(run) / 2:
            continue
        gradients = facts.measured.residuals["log_gradient"]
        # A norm's scale belongs to one place of the stream: gradients are compared behind norms.
        ratio = float(gradients[run[0]] - gradients[run[-1]])
        allowed = math.exp(_MOST_RATIO)
        roles = sorted({starred(facts.layers[i].name) for r in residuals for i in r.last})
        measured = math.exp(ratio) if abs(ratio) < 700 else (0.0 if ratio < 0 else math.inf)
        yield Verdict(
            "norm place",
            ", ".join(roles),
            measured,
            1.0,
            1 / allowed,
            allowed,
            f"Norms stand on the stream, behind each of {len(run)} sums: the gradient at the first "
            f"is {measured:.3g} times that at the last. Put each norm in front of its branch; as "
            "the model is, smaller branches help.",
            tuple(changes.scale(role, 1 / len(run)) for role in roles),
        )


# ---- gradients


def gradient_jump(facts: Facts) -> Iterator[Verdict]:
    """Gradients that differ a lot between alike layers, at the place where they differ most."""
    # A weight that is read several times, as packed queries, keys and values, use by use.
    groups: dict[tuple[str, int], list[int]] = defaultdict(list)
    uses = Counter[str]()
    for k, layer in enumerate(facts.layers):
        groups[starred(layer.name), uses[layer.name]].append(k)
        uses[layer.name] += 1
    # What arrives at queries and keys is as large as tokens differ, which depth does not rule.
    of_logits = facts.of_logits()
    for (role, _), members in groups.items():
        if (
            role in of_logits
            or len(members) < 3
            or len({facts.layers[k].name for k in members}) < 3
        ):
            continue
        rows = np.array([facts.of_layer("log_gradient", k) for k in members])
        finite = rows[np.isfinite(rows)]
        if len(finite) < 3:
            continue
        ratio = float(finite.max() - finite.min())
        at = int(np.nanargmax(np.abs(np.diff(rows)))) if np.isfinite(rows).all() else 0
        yield Verdict(
            "gradient",
            role,
            math.exp(min(ratio, 700)),
            1.0,
            0.0,
            math.exp(meanfield.DEPTH_SCALES),
            f"The gradient that arrives differs {math.exp(min(ratio, 700)):.3g} times between "
            f"layers of this role, most behind {facts.layers[members[at]].name}.",
        )


def formats(facts: Facts) -> Iterator[Verdict]:
    """Gradients below the smallest number of their format, with the depth where they fall below."""
    types = facts.anatomy.program.types
    by_type: dict[str, list[int]] = defaultdict(list)
    for k, layer in enumerate(facts.layers):
        by_type[str(types[layer.pre].dtype)].append(k)
    for dtype, members in by_type.items():
        tiny = laws.smallest(dtype)
        below = [k for k in members if _root_mean_square(facts, k) < tiny]
        if any(facts.of_layer("log_gradient", k) == -math.inf for k in below):
            # Behind a zero, which will move, nothing has been lost.
            below = [k for k in below if _root_mean_square(facts, k, facts.later()) < tiny]
        below = _underflown(facts, members, below, tiny)
        lost = len(below) / len(members)
        first = max(below, default=members[0])
        largest = max((_root_mean_square(facts, k) for k in members), default=1.0)
        factor = 2.0 ** round(math.log2(1e-2 / largest)) if 0 < largest < 1e-2 else 2.0**10
        yield Verdict(
            "format",
            facts.layers[first].name,
            lost,
            0.0,
            0.0,
            0.0,
            f"Counted from the loss, from layer {len(members) - members.index(first)} of "
            f"{len(members)} on the gradient is below {tiny:.1g}, the smallest number of {dtype}.",
            (changes.scale_loss(factor),),
        )


def _underflown(facts: Facts, members: list[int], below: list[int], tiny: float) -> list[int]:
    """Those of the layers below a number whose gradient has come down to it.

    Exact zeros are counted where they reach from the first layer to one behind which the gradient
    is near that number, or to the loss: others have been stopped.
    """
    small = [k for k in below if _root_mean_square(facts, k) > 0]
    if below != members[: len(below)]:
        return small
    behind = members[len(below) : len(below) + 1]
    return below if all(_root_mean_square(facts, k) < tiny / _PER_LAYER for k in behind) else small


def _root_mean_square(facts: Facts, k: int, later: Measured | None = None) -> float:
    size = math.prod(facts.anatomy.program.types[facts.layers[k].pre].shape)
    measured = later or facts.measured
    log = float(measured.layers["log_gradient"][k]) - math.log(max(size, 1)) / 2
    return math.exp(log) if log < 700 else math.inf
