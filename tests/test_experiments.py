"""What every experiment must do, those that nobody has written yet among them."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import pytest
import xarray as xr

from gradlab.experiment import dataset, figures, loading
from gradlab.experiment.claim import Claim
from gradlab.experiment.headline import recorded
from gradlab.experiment.loading import Experiment
from gradlab.running import composition
from gradlab.running.settings import Settings
from tests.toys import PROJECT, quickly_compiled, shared_configs

SCALES = ("full", "smoke")

FIGURES = {"figure.pdf", "figure.png", "figure.svg"}
COMMITTED = {"caption.md", "claims.json", "data.nc", "run.json", *FIGURES}


def composed(exp: Experiment, scale: str) -> tuple[Settings, Any]:
    """The settings and the config of an experiment at one scale."""
    return composition.composed(exp, [f"scale={scale}"])


@pytest.fixture
def exp(experiment_file: Path) -> Experiment:
    return loading.load(experiment_file)


def measured(exp: Experiment, folder: Path) -> Path:
    """The `data.nc` of a smoke run, left in `folder`."""
    settings, cfg = composed(exp, "smoke")
    path = folder / "data.nc"
    # An experiment is run as its user runs it: broadcasting is refused in the library's tests only.
    with jax.numpy_rank_promotion("allow"):
        dataset.write(path, loading.evaluate(exp, cfg, settings.seed))
    return path


def judged(exp: Experiment, data: xr.Dataset) -> list[Claim]:
    """The claims about a dataset."""
    with jax.numpy_rank_promotion("allow"):
        return loading.judge(exp, data)


@cache
def honest(file: Path) -> tuple[bytes, xr.Dataset, list[Claim]]:
    """A smoke run through disk: the bytes there, the dataset read back, and its claims."""
    exp = loading.load(file)
    with tempfile.TemporaryDirectory() as folder, quickly_compiled():
        path = measured(exp, Path(folder))
        data = dataset.read(path)
        return path.read_bytes(), data, judged(exp, data)


@pytest.mark.parametrize("scale", SCALES)
def test_the_config_composes_at_every_scale(exp: Experiment, scale: str) -> None:
    settings, cfg = composed(exp, scale)
    smoke = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in composition.content(
            exp.config_file.parent / "scale" / exp.name / "smoke.yaml"
        ).items()
    }

    assert settings.precision == "float64"
    assert ({name: getattr(cfg, name) for name in smoke} == smoke) == (scale == "smoke")


def test_every_claim_holds_of_a_small_run_that_went_through_disk(experiment_file: Path) -> None:
    _, _, claims = honest(experiment_file)

    assert claims
    assert [claim.record() for claim in claims if not claim.holds] == []
    assert len({claim.sentence for claim in claims}) == len(claims)


def test_every_tolerance_names_a_cause_and_every_claim_a_source(experiment_file: Path) -> None:
    _, _, claims = honest(experiment_file)

    assert [claim.sentence for claim in claims if not claim.source] == []
    assert [claim.sentence for claim in claims if "" in claim.tolerance] == []


def test_a_run_has_one_to_four_headline_numbers_of_its_data(exp: Experiment) -> None:
    _, data, _ = honest(exp.project / "experiments" / f"{exp.name}.py")
    with jax.numpy_rank_promotion("allow"):
        numbers = loading.headline(exp, data)

    assert 1 <= len(numbers) <= 4
    assert [number.name for number in numbers if not number.low <= number.value <= number.high] == [
        number.name for number in numbers if not number.has_interval
    ]
    assert [recorded(number.record()).record() for number in numbers] == [
        number.record() for number in numbers
    ]


def test_the_figure_is_drawn_from_disk_and_has_the_same_bytes_twice(exp: Experiment) -> None:
    _, data, _ = honest(exp.project / "experiments" / f"{exp.name}.py")
    with jax.numpy_rank_promotion("allow"):
        drawn = figures.draw(exp.module.figure, data.copy(deep=True))
        with mpl.rc_context(figures.STYLE):
            again = figures._file(exp.module.figure(data.copy(deep=True)), "png", "")

    assert drawn["png"].startswith(b"\x89PNG")
    assert drawn["pdf"].startswith(b"%PDF")
    assert b"</svg>" in drawn["svg"]
    # The first that is written: each writing moves the layout. tests/experiment/test_figures.py
    # has all three formats.
    assert again == drawn["png"]


@pytest.mark.verify
def test_claims_hold_as_a_user_compiles_it_and_compiled_anew_it_has_the_same_bytes(
    exp: Experiment, tmp_path: Path
) -> None:
    path = measured(exp, tmp_path)
    bits, data = path.read_bytes(), dataset.read(path)
    jax.clear_caches()

    assert [claim.record() for claim in judged(exp, data) if not claim.holds] == []
    assert measured(exp, tmp_path).read_bytes() == bits


def test_the_results_are_committed_and_small(exp: Experiment) -> None:
    folder = exp.project / "results" / exp.name
    there = (path for path in folder.glob("*.*") if path.is_file())
    sizes = {path.name: path.stat().st_size for path in there}

    assert sizes.keys() == COMMITTED, f"make {exp.name} leaves them in {folder}"
    assert 0 < sizes["data.nc"] < 1_000_000
    assert [name for name, size in sizes.items() if name != "data.nc" and size > 300_000] == []


# Their faults take from half a minute to minutes to compile: `make verify` plants them.
LONG = (
    *("attention_logits", "attention_phases", "clipped_vanishing", "coordinate_check"),
    *("curse_of_depth", "dropout_depth", "float_limits", "framework_defaults", "freak_batch"),
    *("hyper_connections", "clip_threshold", "clipping_matrix", "clip_and_adam"),
    *("jacobian_product", "layers_moved", "masked_products", "norm_position"),
    *("normaliser_free_gain", "random_network", "rectifier_gain", "recurrent_chain"),
    *("residual", "scalar_chain", "singular_value_spectrum", "trainable_depth", "tricks"),
    *("glorot_variance", "lyapunov_spectrum", "rank_collapse", "residual_growth", "wall"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(file.stem, marks=[pytest.mark.verify] * (file.stem in LONG))
        for file in loading.discover(PROJECT)
    ],
)
def test_every_fault_breaks_a_claim_and_every_claim_is_broken_by_a_fault(
    name: str, tmp_path: Path
) -> None:
    exp = loading.load(PROJECT / "experiments" / f"{name}.py")
    _, _, claims = honest(exp.project / "experiments" / f"{exp.name}.py")
    sentences = [claim.sentence for claim in claims]
    broken: dict[str, set[str]] = {}
    for fault, planted in exp.faults.items():
        with planted(exp), quickly_compiled():
            data = dataset.read(measured(exp, tmp_path))
            broken[fault] = {claim.sentence for claim in judged(exp, data) if not claim.holds}
    sys.stdout.write(matrix(sentences, broken))

    assert [fault for fault, caught in broken.items() if not caught] == []
    assert set(sentences) - set().union(*broken.values()) == set()


def matrix(sentences: list[str], broken: dict[str, set[str]]) -> str:
    """A line for each claim, a column for each fault: x where the fault breaks the claim."""
    legend = [f"{place:>3} {fault}" for place, fault in enumerate(broken, start=1)]
    header = "".join(f"{place:>3}" for place in range(1, len(broken) + 1))
    rows = [
        "".join("  x" if sentence in caught else "  ." for caught in broken.values())
        + f"  {sentence}"
        for sentence in sentences
    ]
    return "\n".join(["", *legend, "", header, *rows, ""])


# ---- an experiment that nobody here has seen

UNSEEN = '''"""How fast does a gradient change on its way back through a random network?

Schoenholz, Gilmer, Ganguli and Sohl-Dickstein 2017, section 4.
"""

import gradlab as gl
from gradlab.lazy import jax, jnp, np


@gl.config
class Config:
    activation: str
    depth: int
    width: int
    num_draws: int
    sigma_w: gl.Floats
    sigma_b: float
    gain: float = gl.key("factor of the weights that theory is not told of", above=0, at_most=10)


def compute(cfg, key):
    phi = gl.activations.PHI[cfg.activation]

    def one(key, sigma_w):
        key_chain, key_input = jax.random.split(key)
        weight = cfg.gain * sigma_w
        model = gl.ensembles.gaussian(key_chain, cfg.depth, cfg.width, phi, weight, cfg.sigma_b)
        x = gl.ensembles.inputs(key_input, cfg.width, 1.0)
        norms = gl.jacobians.log_gradient_norms(model, x, jnp.sum)
        return norms - norms[-1]

    over_sigma_w = jax.vmap(one, in_axes=(None, 0))
    keys = jax.random.split(key, cfg.num_draws)
    return {
        "log_gradient": gl.named(
            jax.lax.map(lambda key: over_sigma_w(key, cfg.sigma_w), keys),
            *("draw", "sigma_w", "layer"),
            long_name="log |dL/dz_l| / |dL/dz_L|",
            units="nats",
        ),
        "chi_1": gl.named(
            gl.theory.meanfield.chi_1(phi, cfg.sigma_w, cfg.sigma_b), "sigma_w", long_name="chi_1"
        ),
    }


def figure(data):
    fig, (axes,) = gl.figures.panels(width=gl.figures.COLUMN)
    for sigma_w, look in zip(data.sigma_w.values, gl.figures.series(data.sizes["sigma_w"])):
        line = data.log_gradient.sel(sigma_w=sigma_w).mean("draw")
        axes.plot(data.layer, line, color=look["color"], marker=look["marker"], linestyle="none")
    axes.set(xlabel="layer", ylabel="log gradient")
    return fig


def claims(data):
    for i, sigma_w in enumerate(data.sigma_w.values):
        grown = gl.estimate.mean(data.log_gradient[:, i, 0])
        yield gl.Claim(
            f"sigma_w = {sigma_w:g}: the log gradient grows by log chi_1 / 2 a layer",
            measured=grown.value / data.attrs["depth"],
            expected=float(np.log(data.chi_1[i]) / 2),
            tolerance={
                "sampling": 4 * grown.error / data.attrs["depth"],
                "finite width": 2 / data.attrs["width"],
            },
            source="Schoenholz et al. 2017, equation 19",
        )


FAULTS = {"gradient read backwards": gl.fault.change(
    "jacobians.log_gradient_norms",
    lambda honest: lambda model, x, loss: honest(model, x, loss)[::-1],
)}

if __name__ == "__main__":
    gl.run(__file__)
'''

VALUES = """defaults:
  - schema
  - base
  - _self_
  - scale: full
  - optional scale/unseen: ${scale}

activation: linear
depth: 20
width: 32
num_draws: 8
sigma_w: [0.9, 1.5]
sigma_b: 0.0
gain: 1.0
"""

# A third file, for an experiment that has a small scale of its own.
SMOKE = """# @package _global_
depth: 5
"""


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """A project of which only the two files are new."""
    shared_configs(tmp_path)
    for name, content in {"experiments/unseen.py": UNSEEN, "configs/unseen.yaml": VALUES}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line of the unseen experiment, in a process and with a cache of its own."""
    return subprocess.run(
        [sys.executable, "experiments/unseen.py", *arguments],
        cwd=project,
        env=os.environ | {"XDG_CACHE_HOME": str(project / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )


def files(project: Path) -> set[str]:
    """All files of a project but the cache and the results."""
    paths = (path.relative_to(project) for path in project.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] not in ("cache", "results")}


RESULT = {".hydra", *COMMITTED} - {"caption.md"}  # it has no caption


def test_an_unseen_experiment_is_two_files_and_runs(unseen: Path) -> None:
    before = files(unseen)
    done = run(unseen)

    assert done.returncode == 0, done.stderr
    assert {path.name for path in (unseen / "results" / "unseen").iterdir()} == RESULT
    assert "2 of 2 claims hold" in done.stdout
    assert files(unseen) == before


def test_an_unseen_experiment_takes_a_scale_and_one_number_for_a_list(unseen: Path) -> None:
    (unseen / "configs" / "scale" / "unseen").mkdir()
    (unseen / "configs" / "scale" / "unseen" / "smoke.yaml").write_text(SMOKE)
    done = run(unseen, "scale=smoke", "sigma_w=1.2")
    folder = unseen / "results" / "unseen" / "scale=smoke,sigma_w=1.2"

    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == RESULT
    data = dataset.read(folder / "data.nc")
    assert data.sigma_w.values.tolist() == [1.2]
    assert data.sizes["layer"] == 6


def test_a_claim_that_fails_ends_the_program_with_1_after_everything_is_written(
    unseen: Path,
) -> None:
    done = run(unseen, "scale=smoke", "gain=3")
    folder = unseen / "results" / "unseen" / "gain=3,scale=smoke"

    assert done.returncode == 1
    assert {path.name for path in folder.iterdir()} == RESULT
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    verdicts = [claim["verdict"] for claim in claims]
    assert verdicts == ["fails", "fails"]
    assert "Traceback" not in done.stderr


def test_an_unseen_experiment_is_swept(unseen: Path) -> None:
    done = run(unseen, "--multirun", "scale=smoke", "depth=5,8", "seed=0,1")

    assert done.returncode == 0, done.stderr
    (path,) = (unseen / "results" / "unseen").glob("*/data.nc")
    data = dataset.read(path)
    assert data.depth.values.tolist() == [5, 8]
    assert data.seed.values.tolist() == [0, 1]
    assert data.log_gradient.dims == ("depth", "seed", "draw", "sigma_w", "layer")
    assert data.num_layer.values.tolist() == [[6, 6], [9, 9]]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dept=3", "depth"),
        ("depth=0", "depth is 0"),
        ("activation=thanh", "tanh"),
        ("sigma_w=[]", "sigma_w is an empty list"),
        ("gain=inf", "gain"),
        ("scale=tiny", "smoke"),
    ],
)
def test_bad_input_gets_one_sentence_and_nothing_is_written(
    unseen: Path, override: str, said: str
) -> None:
    done = run(unseen, override)

    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (unseen / "results").exists()
