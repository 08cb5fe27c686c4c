"""From Python it is as on the command line, and JAX is afterwards as it was before."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab.errors import BadInput
from gradlab.experiment import dataset, fileset, loading
from tests.toys import typed


@pytest.fixture(autouse=True)
def here(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lab)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")


def store(lab: Path) -> set[str]:
    return {path.name for path in (lab / "results" / ".store" / "twice").glob("*.nc")}


def test_a_run_is_the_one_of_the_command_line(lab: Path) -> None:
    run = gl.run("twice", w=[0.1, np.float32(0.5)], gain=2)
    np.testing.assert_allclose(run.data.twice, 4 * np.sin([0.1, 0.5]), rtol=1e-15)
    assert run.claims.hold
    assert "holds  it is small" in repr(run.claims)
    assert "<td>it is small</td>" in run._repr_html_()
    assert run.figure.axes[0].get_xlabel() == "w"
    assert fileset.strangers(run.folder) == []
    before = store(lab)
    assert gl.run("twice", w=[0.1, 0.5], gain=2.0).data.identical(run.data)  # from the store
    assert list(run.data.side.values) == ["left", "right"]

    ended = typed(lab / "experiments" / "twice.py", "w=[0.1,0.5]", "gain=2.0")
    assert ended.status == 0, ended.stderr
    assert dataset.read(lab / "results" / "twice" / "gain=2.0,w=[0.1,0.5]" / "data.nc").identical(
        run.data
    )
    assert store(lab) == before


def test_a_run_is_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    honest = loading.judge

    def judge(*given: Any) -> list[gl.Claim]:
        times.append(given)
        return honest(*given)

    monkeypatch.setattr(loading, "judge", judge)
    assert gl.run("twice").claims.hold
    assert len(times) == 1


def test_a_sweep_by_a_launcher_is_the_same_dataset() -> None:
    one = gl.sweep("twice", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1", seed=range(2))
    assert gl.sweep("twice", seed=range(2)).identical(one)


def test_no_setting_of_jax_is_changed() -> None:
    before = dict(jax.config.values)
    gl.run("twice", precision="float32")
    gl.sweep("twice", seed=range(2), precision="float32")
    assert dict(jax.config.values) == before


def test_a_sweep_is_one_dataset_and_shares_the_store_with_runs(lab: Path) -> None:
    gl.run("twice", seed=1)
    once = store(lab)
    data = gl.sweep("twice", seed=range(3))
    assert dict(data.sizes) == {"seed": 3, "w": 2, "draw": 3, "side": 2}
    assert once < store(lab)
    held = sum(len(json.loads(bytes(_points(path)))) for path in _files(lab))
    assert held == 3
    longer = gl.sweep("twice", seed=[2, 0, 1, 3])
    assert sum(len(json.loads(bytes(_points(path)))) for path in _files(lab)) == 4
    xr.testing.assert_equal(longer.sel(seed=[0, 1, 2]).noise, data.noise)


def _files(lab: Path) -> list[Path]:
    return sorted((lab / "results" / ".store" / "twice").glob("*.nc"))


def _points(path: Path) -> np.ndarray:
    return dataset.read(path)["points of this file"].values


def test_an_edited_experiment_is_the_edited_one_at_the_next_call(lab: Path) -> None:
    first = gl.run("twice").data.twice
    helper = lab / "experiments" / "helper.py"
    helper.write_text(helper.read_text().replace("FACTOR = 2.0", "FACTOR = 3.0"))
    np.testing.assert_allclose(gl.run("twice").data.twice, 1.5 * first, rtol=1e-15)


def test_what_is_on_disk_is_loaded_and_told_and_what_is_not_says_its_command() -> None:
    with pytest.raises(gl.BadInput, match=r"allowed: .*python experiments/twice\.py gain=4.0"):
        gl.load("twice", gain=4.0)
    run = gl.run("twice", gain=4.0)
    gl.sweep("twice", seed=range(2))
    assert gl.load("twice", gain=4.0).data.identical(run.data)
    table = gl.runs()
    assert set(table.overrides) == {"gain=4.0", "seed=range(0,2)"}
    assert list(table.whole) == [True, True]
    table = table.set_index("overrides")
    assert table.noise["gain=4.0"] == run.headline[0].value
    assert len(table.noise["seed=range(0,2)"]) == 2
    (run.folder / "claims.json").write_text("[]")
    with pytest.raises(gl.BadInput, match=r"claims\.json"):
        gl.load("twice", gain=4.0)
    assert not gl.runs("twice").set_index("overrides").whole["gain=4.0"]


def test_two_runs_are_compared_by_all_that_differs() -> None:
    one, other = gl.run("twice"), gl.run("twice", gain=2.0)
    rows = gl.compare(one, other).set_index("name")
    assert rows.loc["gain", "other"] == 2.0
    assert rows.loc["twice", "other"] == float(abs(one.data.twice).max())
    assert "noise" not in rows.index
    assert len(gl.compare(one, one)) == 0


def test_pruning_removes_what_todays_code_would_not_give(lab: Path) -> None:
    gl.run("twice")
    gl.sweep("twice", seed=range(3))
    assert gl.prune("twice") == []
    path = lab / "experiments" / "helper.py"
    path.write_text(path.read_text().replace("FACTOR = 2.0", "FACTOR = 3.0"))
    gl.run("twice")
    assert [plain["seed"] for plain in gl.prune("twice")] == [0, 1, 2]
    assert len(store(lab)) > 1
    gl.prune("twice", dry_run=False)
    assert gl.prune("twice") == []
    assert len(store(lab)) == 1


@pytest.mark.parametrize(
    ("experiment", "values", "sentence"),
    [
        ("twise", {}, "experiment 'twise' is not known; did you mean 'twice'"),
        ("twice", {"dept": 3}, "key 'dept' is not known; did you mean 'depth'"),
        ("twice", {"depth": "three"}, "depth is 'three'"),
        ("twice", {"gain": float("nan")}, "gain is nan"),
        ("twice", {"w": []}, "an empty list"),
    ],
)
def test_what_is_not_possible_is_told_in_a_sentence(
    lab: Path, experiment: str, values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(gl.BadInput) as told:
        gl.run(experiment, **values)
    assert sentence in str(told.value)
    assert not (lab / "results").exists()


def test_axes_are_spaced_zipped_and_listed_from_python_too(lab: Path) -> None:
    gains = np.geomspace(0.1, 10, 5)
    data = gl.sweep("twice", gain=gains, seed=range(2))
    np.testing.assert_array_equal(data.gain, gains)
    assert (lab / "results" / "twice" / "gain=geomspace(0.1,10.0,5),seed=range(0,2)").is_dir()
    zipped = gl.sweep("twice", "zip(gain,depth)", gain=[1.0, 2.0], depth=[3, 3], seed=[0, 1])
    rows = [{"gain": 1.0, "depth": 3}, {"gain": 2.0, "depth": 3}]
    xr.testing.assert_equal(zipped, gl.sweep("twice", points=rows, seed=[0, 1]))
    assert zipped.sel(gain=2.0, depth=3, seed=1).sizes["draw"] == 3
    alone = gl.alone(zipped, gain=2.0, depth=3, seed=0)
    assert alone.identical(gl.run("twice", gain=2.0).data)


def test_what_is_not_swept_is_what_was_typed(lab: Path) -> None:
    given: dict[str, Any] = {"w": [0.5], "results": lab / "elsewhere"}
    alone = gl.run("twice", gain=2.0, seed=1, **given).data
    swept = gl.sweep("twice", gain=[1.0, 2.0], seed=[1], **given)
    assert gl.alone(swept, gain=2.0).identical(alone)
    assert gl.sweep("twice", gain=[2.0], seed=1, **given).identical(alone)
    assert not (lab / "results").exists()


@pytest.mark.parametrize("given", [3, None, "twice", xr.Dataset()])
def test_what_is_no_sweep_has_no_point_alone(given: Any) -> None:
    with pytest.raises(BadInput, match="is no dataset of a sweep; allowed"):
        gl.alone(given, seed=1)


def test_presets_and_keys_of_nodes_are_overrides_as_typed() -> None:
    data = gl.sweep("twice", "sweep.method=vmap", "seed=0,1").noise
    assert data.sizes["seed"] == 2


def test_in_another_process_from_any_folder(
    lab: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program = (
        "import gradlab as gl\n"
        f"run = gl.run({str(lab / 'experiments' / 'twice.py')!r})\n"
        "print(run.claims.hold, run.folder)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", str(lab / "results" / "twice")]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: gl.run(3), "experiment is 3; allowed: its name"),  # type: ignore[arg-type]
        (lambda: gl.run("twice", gain=1j), "1j is no value of a key; allowed: a number"),
        (lambda: gl.sweep("twice", gain=[object()]), "is no value of a key; allowed: a number"),
        (lambda: gl.runs(results=3), "results is 3; allowed: a name"),  # type: ignore[arg-type]
        (lambda: gl.compare(1, 2), "a int is no run to be compared"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_value_is_told_in_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(gl.BadInput, match=sentence):
        call()
