"""Every room has its test file, or stands here with the file that tests it, and why there."""

from pathlib import Path

import pytest

import gradlab

PACKAGE = Path(gradlab.__file__).parent
TESTS = Path(__file__).parent

SVD = "measuring/product_svd/test_product_svd.py"
RUN, HYDRA = "running/test_command_line.py", "running/test_hydra.py"
CLIP, MONITOR = "measuring/test_clipping_training.py", "measuring/test_monitor.py"
SWEEP, LESSON = "sweeping/test_sweep.py", "page/test_page_lesson.py"

# Room to the file that tests it, from this folder, and what is true of the room only there.
ELSEWHERE = {
    "errors": (RUN, "a class without a body: what matters is each sentence that is told"),
    "lazy": (RUN, "that a command line is answered before jax is imported"),
    "starting": ("running/test_interrupts.py", "signals, in a program that has just begun"),
    "experiment.lesson": (LESSON, "what is offered is right if the page shows it at its place"),
    "experiment.loading": ("test_experiments.py", "every experiment there is, loaded and judged"),
    "measuring.product_svd.complete_pivoting": (
        "measuring/product_svd/test_elimination.py",
        "both eliminations have the same properties, held against the same exact factors",
    ),
    **dict.fromkeys(
        (
            f"measuring.product_svd.{room}"
            for room in (
                *("error_bound", "extended", "factorisation", "factors", "ratios"),
                *("spectrum", "thresholds", "trial"),
            )
        ),
        (SVD, "the room is closed: its parts are right if the singular values are"),
    ),
    **dict.fromkeys(
        (
            f"diagnosis.{room}"
            for room in (
                *(
                    "anatomy",
                    "changes",
                    "checks_flow",
                    "checks_logits",
                    "checks_weights",
                    "command",
                ),
                *("dependence", "door", "examination", "facts", "laws", "layers", "measures"),
                *("planning", "counting", "embeddings"),
                *("program", "record", "report", "singular", "softmaxes", "sums", "verdicts"),
            )
        ),
        ("diagnosis/test_audit.py", "its parts are right if planted sickness is found and named"),
    ),
    "calibration.wrong": ("calibration/test_mutations.py", "a mutation plants them"),
    **dict.fromkeys(
        ("diagnosis.checks_learning", "diagnosis.entries", "diagnosis.gates"),
        ("diagnosis/test_learning.py", "what cannot learn is found, and what learns is not"),
    ),
    **dict.fromkeys(
        ("diagnosis.rewiring", "diagnosis.checks_streams"),
        ("diagnosis/test_streams.py", "a stream that is wired wrongly is found, and rewired"),
    ),
    **dict.fromkeys(
        ("diagnosis.memory", "diagnosis.outputs", "diagnosis.skips"),
        ("diagnosis/test_wiring.py", "what a loop, a logit or a block lacks is found, and given"),
    ),
    "diagnosis.exceptional": (
        "diagnosis/test_operations.py",
        "the operation that is at fault is named, and changed",
    ),
    "diagnosis.spikes": (
        "diagnosis/test_watching.py",
        "the order of events, as planted into a run that is watched",
    ),
    "models.callables": ("models/test_chain.py", "a callable is right if the chain of it is"),
    **dict.fromkeys(
        ("measuring.by_name", "measuring.wide"),
        ("measuring/test_passes.py", "a run is right if it is as with its layers written out"),
    ),
    "measuring.leaf_norms": (MONITOR, "norms and steps kept, held against a run recorded in full"),
    "page.citation": ("page/test_page.py", "how to cite a figure, as its card says it"),
    "page.build": ("page/test_page.py", "both pages are made from folders of results"),
    "page.evidence": (LESSON, "a number is right if the sentence has the dataset's"),
    "page.gallery": ("page/test_page.py", "a card for whatever a folder holds"),
    "page.numbers": ("page/test_page.py", "digits as the pages show them"),
    "page.offers": (LESSON, "what several experiments offer to one place"),
    "page.readme": ("page/test_page.py", "the table as README has it"),
    "page.still": ("page/test_browser_pages.py", "what a page shows without its script"),
    "page.site": (
        "page/test_page.py",
        "a folder that any host serves",
    ),
    "page.vector": ("page/test_page.py", "a figure shrunk for a page"),
    "running.composition": (HYDRA, "what Hydra composed, at Hydra's side"),
    "running.naming": (RUN, "a folder's name follows from a command line"),
    "running.refusals": (RUN, "each sentence follows what was typed"),
    "running.settings": (HYDRA, "the keys that every run has, as Hydra shows them"),
    "running.question": ("test_package.py", "two files, begun and run by the installed command"),
    "running.single": (RUN, "the files of a run, and its exit status"),
    "running.usage": (RUN, "what --help says, in a process that has no jax"),
    "running.grammar": (SWEEP, "spaced values, ranges and what goes along together, as typed"),
    "sweeping.gathered": (SWEEP, "points that hold, fail or are not there"),
    "sweeping.grid": (SWEEP, "the points of what was typed"),
    "sweeping.join": (SWEEP, "axes, tables and padded ends, of points that were computed"),
    "sweeping.lines": (SWEEP, "the grammar of Hydra's sweeps, typed"),
    "sweeping.launchers": ("sweeping/test_sweep_launchers.py", "each launcher of Hydra's"),
    "sweeping.multirun": (SWEEP, "the grammar of Hydra's sweeps, typed"),
    "sweeping.queues": ("sweeping/test_cluster.py", "processes, and a Slurm of two nodes"),
    "sweeping.scales": ("sweeping/test_overview.py", "places along the axes of a figure"),
    "sweeping.strip": ("sweeping/test_overview.py", "the claims below it"),
    "sweeping.summary": ("sweeping/test_overview.py", "what a figure is drawn from"),
    "sweeping.programs": (SWEEP, "bits, compilations and failures, by each method"),
    "arithmetic.quick_norms": (CLIP, "a norm is quick and right where a clip by it is"),
    "measuring.global_norm": (CLIP, "its derivatives are those of the clip"),
    "measuring.clip_report": (MONITOR, "a report tells what a monitor has kept"),
    "measuring.histogram": (MONITOR, "quantiles, held against a run recorded in full"),
    "sweeping.outcomes": ("sweeping/test_from_python.py", "what a run shows and two differ in"),
    "running.recall": ("running/test_identity.py", "a program that is recalled has its name"),
    "experiment.files": ("experiment/test_dataset.py", "a write is whole or did not happen"),
    "experiment.fileset": ("page/test_page.py", "a set of files is one, or its card says so"),
}


def rooms() -> dict[str, Path]:
    """Each room of the package, and the test file that would be its own."""
    paths = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py"))]
    return {
        ".".join(path.with_suffix("").parts): TESTS / path.parent / f"test_{path.stem}.py"
        for path in paths
        if not path.stem.startswith("__")
    }


def test_every_room_is_tested_in_one_place_that_is_known() -> None:
    without = {room for room, own in rooms().items() if not own.is_file()}

    assert without == ELSEWHERE.keys()


@pytest.mark.parametrize("room", ELSEWHERE)
def test_the_place_is_there_and_holds_tests(room: str) -> None:
    file, why = ELSEWHERE[room]

    assert "def test_" in (TESTS / file).read_text()
    assert why
