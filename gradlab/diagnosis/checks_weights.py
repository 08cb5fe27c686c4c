"""Checks of weights against the laws that they are drawn by, before anything flows through them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from statistics import median

import numpy as np

from gradlab.diagnosis import changes, laws
from gradlab.diagnosis.anatomy import starred
from gradlab.diagnosis.dependence import PRODUCTS
from gradlab.diagnosis.entries import Weights
from gradlab.diagnosis.facts import Facts, streams
from gradlab.diagnosis.layers import Layer
from gradlab.diagnosis.program import Step
from gradlab.diagnosis.verdicts import Verdict

_BY_FAN_IN = ("LeCun", "He", "PyTorch default")


def finite_weights(facts: Facts) -> Iterator[Verdict]:
    """A weight that is nan or inf."""
    groups = {name: alike for alike in facts.alike().values() for name in alike}
    for name, weights in facts.weights.items():
        others = [facts.weights[n] for n in groups[name] if facts.weights[n].finite]
        yield Verdict(
            "not finite",
            name,
            float(not weights.finite),
            0.0,
            0.0,
            0.0,
            "It holds an entry that is nan or inf.",
            (_redrawn(name, weights.shape, others),) if not weights.finite else (),
        )


def _redrawn(name: str, shape: tuple[int, ...], others: list[Weights]) -> changes.Change:
    """The change that gives a parameter the law of its alike, or LeCun's."""
    if others and len({(w.mean, w.std) for w in others}) == 1 and others[0].std == 0:
        return changes.fill(name, others[0].mean)
    if others:
        return changes.redraw(name, median(w.std for w in others), laws.usual_shape(others))
    if len(shape) > 1:
        return changes.redraw(name, shape[-1] ** -0.5)
    return changes.fill(name, 0.0)


def copies(facts: Facts) -> Iterator[Verdict]:
    """Units that are copies of each other get one gradient, and stay copies."""
    for layer in facts.layers:
        weights = facts.weights.get(layer.name)
        if weights is None or min(weights.shape, default=0) < 2 or len(weights.shape) < 2:
            continue
        yield Verdict(
            "copies",
            layer.name,
            float(weights.copies),
            0.0,
            0.0,
            0.0,
            "Its units have equal weights, so they get equal gradients and stay one unit.",
            (changes.redraw(layer.name, layer.fan_in**-0.5),),
        )


def equal_rows(facts: Facts) -> Iterator[Verdict]:
    """An embedding of one number, behind which every layer reads 0: no token is told from another.

    Beside another embedding, or as positions are, it may be 0 at first.
    """
    reads = facts.measured.layers.get("log_state", np.zeros(0))
    is_silent = len(reads) > 0 and bool(np.isneginf(reads).all())
    for p in sorted(facts.anatomy.embedded):
        name = facts.anatomy.names[p]
        weights = facts.weights.get(name)
        if weights is None or len(weights.shape) != 2:
            continue
        yield Verdict(
            "copies",
            name,
            float(is_silent and weights.std == 0),
            0.0,
            0.0,
            0.0,
            "Its rows are equal, and every layer behind it reads 0: the model does not see its "
            "input.",
            (changes.redraw(name, weights.shape[1] ** -0.5),),
        )


def same_entries(facts: Facts) -> Iterator[Verdict]:
    """Layers that were drawn from one key: the entries of each are those of another."""
    # Numbers that are set, as decay rates and scales, are equal by right; matrices are drawn.
    products = {layer.name for layer in facts.layers}
    products |= {facts.anatomy.names[p] for p in facts.anatomy.embedded}
    twins: dict[str, dict[str, str]] = defaultdict(dict)
    for names in facts.alike().values():
        first: dict[Weights, str] = {}
        for name in names:
            weights = facts.weights[name]
            is_drawn = name in products and weights.zeros < 0.5  # an identity is not
            if is_drawn and weights.std > 0 and weights.finite and min(weights.shape) > 1:
                twin = first.setdefault(weights, name)
                if twin != name:
                    twins[_head(name)][name] = twin
    for pairs in twins.values():
        (name, twin), *_ = pairs.items()
        yield Verdict(
            "copies",
            name,
            1.0,
            0.0,
            0.0,
            0.0,
            f"Its entries are those of {twin}: drawn from one key, or one layer in two places.",
            tuple(
                changes.redraw(n, facts.weights[n].std, laws.usual_shape([facts.weights[n]]))
                for n in pairs
            ),
        )


def _head(name: str) -> str:
    """A path up to its first number: `blocks.3` of `blocks.3.proj.weight`."""
    words = name.split(".")
    pairs = zip(words, starred(name).split("."), strict=True)
    numbers = [k for k, (word, role) in enumerate(pairs) if word != role]
    return ".".join(words[: numbers[0] + 1]) if numbers else name


def alike(facts: Facts) -> Iterator[Verdict]:
    """A layer whose weights have another size than those of all its alike."""
    told = set()
    for names in facts.alike().values():
        if len(names) < 3:
            continue
        num_axes = len(facts.weights[names[0]].shape)
        told |= set(names)
        rows = [_level(facts.weights[name]) for name in names]
        errors = [_error(facts.weights[name]) for name in names]
        is_drawn = num_axes > 1 or _are_constant([facts.weights[name] for name in names])
        least = laws.SAME if is_drawn else math.log(laws.MOST_TRAINED)
        found = laws.outliers(rows, errors, facts.z, least)
        for k, name in enumerate(names):
            if math.isnan(rows[k]):
                continue
            yield _against(facts, name, rows[k], found.get(k, rows[k]), errors[k], num_axes, least)
    yield from _whole_model(facts, told)


def _are_constant(alike: list[Weights]) -> bool:
    """Whether most of some vectors are one number each, as norms' scales are: these have a law."""
    return 2 * sum(w.std <= laws.SAME * abs(w.mean) for w in alike) > len(alike)


def _against(
    facts: Facts,
    name: str,
    level: float,
    law: float,
    error: float,
    num_axes: int,
    least: float = laws.SAME,
) -> Verdict:
    measured, expected = math.exp(level), math.exp(law)
    width = max(1.5 * facts.z * error, least)
    change: tuple[changes.Change, ...] = ()
    if level != law:
        if measured == 0 and num_axes >= 2:
            alike = next(names for names in facts.alike().values() if name in names)
            usual = laws.usual_shape([facts.weights[n] for n in alike if n != name])
            change = (changes.redraw(name, expected, usual),)
        elif measured == 0 or expected == 0:
            change = (changes.fill(name, expected),)
        else:
            change = (changes.scale(name, expected / measured),)
    return Verdict(
        "alike",
        name,
        measured,
        expected,
        expected * math.exp(-width),
        expected * math.exp(width),
        f"Its entries have a root mean square of {measured:.3g}, its alike's have {expected:.3g}.",
        change,
    )


def _level(weights: Weights) -> float:
    """The log of the root mean square of the entries."""
    size = math.hypot(weights.mean, weights.std)
    return math.log(size) if size != 0 else -math.inf


def _error(weights: Weights) -> float:
    """Its standard error, by sampling and by a 16-bit format's rounding at most."""
    return laws.standard_error(weights.kurtosis if weights.std > 0 else 1.0, weights.size) + 1e-5


def shape(facts: Facts) -> Iterator[Verdict]:
    """A matrix whose entries are distributed otherwise than those of all its alike.

    Such is a normal one among truncated ones, whose bounds, told in other units, cut nothing off.
    """
    for names in facts.alike().values():
        rows = {n: facts.weights[n] for n in names if len(facts.weights[n].shape) > 1}
        if len(rows) < 3:
            continue
        kinds = [laws.shape_of(w, facts.z) for w in rows.values()]
        usual = max(laws.SHAPES, key=kinds.count)
        expected, _ = laws.SHAPES[usual]
        off = {
            n
            for n, w in rows.items()
            if w.std > 0 and abs(w.kurtosis - expected) > laws.shape_error(usual, w.size, facts.z)
        }
        # Without a name, as after some training, it is odd where no bound or tail is alike.
        off = {n for n in off if laws.shape_of(rows[n], facts.z) or _is_far(rows[n], expected)}
        for (name, weights), kind in zip(rows.items(), kinds, strict=True):
            is_odd = name in off and len(off) <= len(rows) / 3 <= kinds.count(usual)
            error = laws.shape_error(usual, weights.size, facts.z)
            yield Verdict(
                "shape",
                name,
                weights.kurtosis if is_odd else expected,
                expected,
                expected - error,
                expected + error,
                f"Its entries are {kind or 'of another law'} (kurtosis {weights.kurtosis:.3g}, the "
                f"largest {_sigmas(weights):.3g} standard deviations); its alike's are {usual}.",
                (changes.redraw(name, weights.std, usual),) if is_odd else (),
            )


def _is_far(weights: Weights, expected: float) -> bool:
    """Whether a kurtosis is less than half, or more than twice what is expected: a convention."""
    return not expected / 2 <= weights.kurtosis <= 2 * expected


def _sigmas(weights: Weights) -> float:
    return weights.largest / weights.std if weights.std > 0 else math.nan


def _whole_model(facts: Facts, told: set[str]) -> Iterator[Verdict]:
    """Matrices without alike ones, where all others of the model keep one law.

    The first and the last matrix, and any that keeps a usual law, may have a law of their own.
    """
    by_name = without_alike(facts, set())
    if not by_name:
        return
    rows = {name: facts.weights[name] for name in by_name if facts.weights[name].std > 0}
    best: dict[str, float] | None = None
    power = 0.0
    for tried in (0.0, -0.5):
        level = {n: math.log(w.std) - tried * math.log(by_name[n].fan_in) for n, w in rows.items()}
        middle = median(level.values()) if level else 0.0
        off = {
            n: v - middle
            for n, v in level.items()
            if abs(v - middle) > 3 * _error(rows[n]) * facts.z
        }
        if len(off) <= len(rows) / 4 and (best is None or len(off) < len(best)):
            best, power = off, tried
    for name, by in (best or {}).items():
        weights, layer = rows[name], by_name[name]
        usual = laws.named_draw(
            weights.std, weights.kurtosis, weights.size, (layer.fan_in, layer.fan_out), facts.z
        )
        scaled = any(_is_depth_scaling(by, len(run)) for run in streams(facts.anatomy))
        if _is_transposed(layer, by, _error(weights) * facts.z, power):
            usual = ""
        # Entries of no drawn distribution have been trained: no law says how far they moved.
        is_drawn = laws.shape_of(weights, facts.z) != ""
        least = laws.SAME if is_drawn else math.log(laws.MOST_TRAINED)
        if name not in told and not usual and not scaled and abs(by) > least:
            yield _against(
                facts, name, math.log(weights.std), math.log(weights.std) - by, _error(weights), 2
            )


def without_alike(facts: Facts, told: set[str]) -> dict[str, Layer]:
    """The inner layers by name, of four or more, but those that have been told of already."""
    makers = {v: step for step in facts.anatomy.program.steps for v in step.outputs}
    inner = [
        layer
        for layer in facts.layers[1:-1]
        if layer.name in facts.weights and not _is_product(makers, layer.weight)
    ]
    by_name = {layer.name: layer for layer in inner if facts.weights[layer.name].size >= 64}
    if len(by_name) < 4:
        return {}
    return {name: layer for name, layer in by_name.items() if name not in told}


def _is_product(makers: dict[int, Step], value: int) -> bool:
    """Whether a weight is a product of parameters, as queries of learnt states are."""
    front, seen = [value], set[int]()
    while front:
        made = makers.get(front.pop())
        if made is None or made.outputs[0] in seen:
            continue
        if made.name in PRODUCTS:
            return True
        seen.add(made.outputs[0])
        front += made.reads
    return False


def _is_transposed(layer: Layer, by: float, error: float, power: float) -> bool:
    """Whether a matrix, off by a log ratio, has fan_out where all others have fan_in."""
    return power != 0 and abs(by - power * math.log(layer.fan_out / layer.fan_in)) < error


def _is_depth_scaling(log_ratio: float, num_branches: int) -> bool:
    """Whether a log ratio is that of 1/√n, for the branches, the blocks, or twice the branches."""
    usual = (num_branches, num_branches / 2, 2 * num_branches)
    return any(abs(log_ratio + math.log(n) / 2) < 0.05 for n in usual if n > 1)


def _is_draw(log_ratio: float) -> bool:
    """Whether a log ratio is that of two usual laws, 1/√2 or 1/√3: depth scaling of 2 or 3."""
    first, *others = (d.std for d in laws.draws(1, 1) if d.name in _BY_FAN_IN)
    return any(abs(abs(log_ratio) - abs(math.log(other / first))) < 0.05 for other in others)


def role_levels(facts: Facts) -> dict[str, tuple[float, float]]:
    """By role, the log of its matrices' standard deviation, and of √fan_in times it: medians."""
    roles: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for layer in facts.layers:
        weights = facts.weights.get(layer.name)
        if weights is not None and weights.std > 0:
            log = math.log(weights.std)
            roles[starred(layer.name)].append((log, log + math.log(layer.fan_in) / 2))
    return {
        role: (median(a for a, _ in rows), median(b for _, b in rows))
        for role, rows in roles.items()
    }


def relative_levels(facts: Facts) -> dict[str, float]:
    """By role, the log scale of its matrices less the model's own: that of most of its roles.

    The model's law is a constant or one over √fan_in, whichever leaves fewer roles beside it.
    """
    roles: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for layer in facts.layers:
        weights = facts.weights.get(layer.name)
        if weights is not None and weights.std > 0:
            roles[starred(layer.name)].append((math.log(weights.std), layer.fan_in))
    fits = []
    for power in (0.0, -0.5):
        levels = {
            role: float(np.median([level - power * math.log(fan) for level, fan in rows]))
            for role, rows in roles.items()
            if len(rows) >= 2
        }
        if levels:
            middle = max(levels.values(), key=lambda level: (_near(level, levels), level))
            relative = {role: level - middle for role, level in levels.items()}
            fits.append((len(levels) - _near(middle, levels), relative))
    return min(fits, key=lambda fit: fit[0])[1] if fits else {}


def _near(level: float, levels: dict[str, float]) -> int:
    """How many of some levels are this one."""
    return sum(abs(other - level) < laws.SAME / 2 for other in levels.values())


def scaled_matrix(facts: Facts) -> Iterator[Verdict]:
    """Depth scaling on a matrix that is not its branch's last one, which has none."""
    relative = relative_levels(facts)
    # A factor of queries and keys is one of logits alone (1/√d in T5, Raffel et al. 2020).
    only_logits = facts.of_logits()
    for run in streams(facts.anatomy):
        if len(run) < 4:
            continue
        num, factor = len(run), len(run) ** -0.5
        for role, last in _inner_roles(facts, run).items():
            if role not in relative or role in only_logits:
                continue
            has = _is_depth_scaling(relative[role], num) and not _is_draw(relative[role])
            is_on_last = any(_is_depth_scaling(relative.get(other, 0.0), num) for other in last)
            wrong, ratio = has and not is_on_last, math.exp(relative[role])
            moved = [changes.scale(role, 1 / ratio), *(changes.scale(r, ratio) for r in last)]
            yield Verdict(
                "scaled matrix",
                role,
                ratio if wrong else 1.0,
                1.0,
                1 - laws.SAME,
                math.inf,
                f"Its matrices are {ratio:.3g} times the others, which is depth scaling for "
                f"{num} branches ({factor:.3g}), but they are not the last of their branch.",
                tuple(moved) if wrong else (),
            )


def _inner_roles(facts: Facts, run: list[int]) -> dict[str, list[str]]:
    """The roles inside the branches of a stream, each to the roles that end those branches."""
    found: dict[str, set[str]] = defaultdict(set)
    for k in run:
        residual = facts.anatomy.residuals[k]
        last = {starred(facts.layers[i].name) for i in residual.last}
        for i in residual.layers:
            role = starred(facts.layers[i].name)
            if role not in last:
                found[role] |= last
    return {role: sorted(last) for role, last in sorted(found.items())}
