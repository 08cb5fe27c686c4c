"""How often chance breaks each claim, on seeds that nobody has seen, against what it states.

A claim states the probability at most (`Claim.chance`), so only too many failures contradict it: a
one-sided binomial test for each claim (Clopper and Pearson 1934), at a level that all claims share
(Bonferroni), and one over all of them together. What chance states may depend on the draw; then
their mean counts, since failures of unequal chances spread no more than equal ones of that mean
(Hoeffding 1956).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gradlab.calibration import rehearsal
from gradlab.calibration.workers import Deadline
from gradlab.experiment.claim import Claim

NUM_SEEDS = 200

# How improbable the failures must be, under what is stated, before they are held against a claim.
LEVEL = 0.01


@dataclass(frozen=True)
class Count:
    """One claim on many seeds.

    Attributes:
        sentence: its sentence.
        made: the runs that made it, since some claims are made only where they apply.
        failed: those of them in which it failed.
        chance: the probability, at most, that it states: in the mean over those runs.
        failing: the first few seeds of the runs in which it failed.
    """

    sentence: str
    made: int
    failed: int
    chance: float
    failing: tuple[int, ...] = ()

    @property
    def p_value(self) -> float:
        """The probability of as many failures or more, at the stated chance."""
        return float(stats.binom.sf(self.failed - 1, self.made, self.chance))


@dataclass(frozen=True)
class Seeds:
    """One experiment on many seeds.

    Attributes:
        num_seeds: how many.
        counts: of each claim.
        draws: whether it uses its seed at all.
    """

    num_seeds: int
    counts: tuple[Count, ...]
    draws: bool = True


def on_fresh_seeds(file: Path, scale: str, entropy: int, seconds: float, before: Any) -> Seeds:
    """As many fresh seeds of an experiment as its time allows, at least two, each judged.

    Of one that draws nothing a single run says all.
    """
    del before  # other seeds are another sample
    one = rehearsal.prepared(file, scale)
    deadline, judged, draws = Deadline(seconds), [], one.draws
    for seed in islice(rehearsal.fresh_seeds(entropy, file.stem), NUM_SEEDS if draws else 1):
        judged.append((seed, one.judged(seed)))
        if deadline.is_over and len(judged) > 1:
            break
    return Seeds(len(judged), tuple(counts(judged)), draws)


def restored(plain: Mapping[str, Any]) -> Seeds:
    """What a record says of one experiment."""
    every = (
        Count(
            one["sentence"],
            one["made"],
            one["failed"],
            one["chance"],
            tuple(one["failing"]),
        )
        for one in plain["claims"]
    )
    return Seeds(plain["num_seeds"], tuple(every), plain.get("draws", True))


def counts(judged: Iterable[tuple[int, Sequence[Claim]]]) -> list[Count]:
    """The count of each claim over runs, of which the seed and the claims are given."""
    made, failing, stated = Counter[str](), dict[str, list[int]](), defaultdict[str, float](float)
    for seed, claims in judged:
        for claim in claims:
            made[claim.sentence] += 1
            stated[claim.sentence] += claim.chance
            if not claim.holds:
                failing.setdefault(claim.sentence, []).append(seed)
    return [
        Count(
            sentence,
            number,
            len(failing.get(sentence, [])),
            stated[sentence] / number,
            tuple(failing.get(sentence, [])[:5]),
        )
        for sentence, number in made.items()
    ]


def beyond(found: Mapping[str, Seeds]) -> list[tuple[str, Count]]:
    """The claims that fail more often than they state, with the names of their experiments."""
    every = [(name, count) for name, seeds in found.items() for count in seeds.counts]
    return [(name, count) for name, count in every if count.p_value < LEVEL / len(every)]


def p_value_of_all(every: Sequence[Count]) -> float:
    """The probability of as many failures of all claims, or more, at the stated chances.

    The number of failures is a sum of binomial numbers; the claims of one run are taken as
    independent.
    """
    failed = sum(count.failed for count in every)
    # Beyond what was seen nothing need be known but the total.
    numbers = np.arange(failed + 1)
    parts = [stats.binom.pmf(numbers, count.made, count.chance) for count in every]
    fewer = reduce(lambda a, b: np.convolve(a, b)[: failed + 1], parts)[:failed]
    return float(max(0.0, 1.0 - fewer.sum()))


def counts_record(found: Mapping[str, Seeds]) -> dict[str, Any]:
    """The counts as JSON holds them, with the verdict on all."""
    every = [count for seeds in found.values() for count in seeds.counts]
    return {
        "expected": sum(count.made * count.chance for count in every),
        "failed": sum(count.failed for count in every),
        "p_value": p_value_of_all(every),
        "beyond": [f"{name}: {count.sentence}" for name, count in beyond(found)],
        "experiments": {
            name: {
                "num_seeds": seeds.num_seeds,
                "draws": seeds.draws,
                "claims": [asdict(count) | {"p_value": count.p_value} for count in seeds.counts],
            }
            for name, seeds in found.items()
        },
    }


def counts_page(found: Mapping[str, Seeds]) -> str:
    """The counts as Markdown: a line for each experiment, then each claim that ever failed."""
    whole = counts_record(found)
    lines = [
        f"{whole['failed']} failures of claims, {whole['expected']:.3g} at most are stated to come "
        f"by chance: probability {whole['p_value']:.2g}.",
        "",
        "| experiment | seeds | claims | failures | stated at most, in all seeds |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, seeds in found.items():
        failed = sum(count.failed for count in seeds.counts)
        stated = sum(count.made * count.chance for count in seeds.counts)
        number = seeds.num_seeds if seeds.draws else "draws nothing"
        lines.append(f"| {name} | {number} | {len(seeds.counts)} | {failed} | {stated:.2g} |")
    bad = beyond(found)
    lines += ["", "| claim that failed | runs | failures | stated | |", "|---|--:|--:|--:|---|"]
    for name, seeds in found.items():
        lines += [
            f"| {name}: {count.sentence} | {count.made} | {count.failed} | {count.chance:.2g} | "
            f"{'more often than stated' if (name, count) in bad else ''} |"
            for count in seeds.counts
            if count.failed
        ]
    return "\n".join(lines)
