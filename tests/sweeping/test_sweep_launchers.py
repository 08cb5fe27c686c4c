"""Every launcher of Hydra's leaves the files of a sweep in this process; several devices too."""

import json
import shutil

import pytest

from tests.toys import Toy

POINTS = ("sigma_w=2.0,3.0", "activation=tanh,linear")


@pytest.mark.parametrize("other", ["basic", "joblib", "submitit_local"])
def test_another_launcher_ends_with_the_same_files(toy: Toy, other: str) -> None:
    failing = (*POINTS, "depth=2,3", "fail='depth 3 linear 5'")
    assert toy.sweep(*failing).status == 1
    (folder,) = toy.results.iterdir()
    files = toy.files(folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(toy.store)  # or nothing would be left to compute
    ended = toy.sweep(*failing, f"hydra/launcher={other}")
    assert ended.status == 1
    assert toy.files(folder.name) == files
    manifest = json.loads((folder / "run.json").read_text())
    assert [failure["error"] for failure in manifest["failures"]] == [
        "ValueError: this structure raises"
    ] * 2
    assert "6 of 8 points were finished before" in toy.sweep(*failing).stderr


def test_another_sweeper_has_its_jobs_joined_too(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.sweep(*POINTS)
    (folder,) = toy.results.iterdir()
    files = toy.files(folder.name)
    shutil.rmtree(folder)
    shutil.rmtree(toy.store)  # or nothing would be left to compute
    elsewhere = toy.project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    toy.sweep(*POINTS, "hydra/sweeper=basic")
    assert toy.files(folder.name) == files
    assert (folder / "multirun.yaml").is_file()  # what Hydra's own sweeper leaves, and where
    shutil.rmtree(folder)
    refused = toy.sweep("sigma_w=2.0,bad", "hydra/sweeper=basic")
    assert refused.stderr.startswith("error: sigma_w is ")
    assert not toy.results.exists()
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("method", ["each", "vmap"])
def test_two_devices_share_the_points_of_a_chunk(toy: Toy, method: str) -> None:
    sweep = ("--multirun", "sigma_w=range(0.5,4.0,0.5)", "sweep.chunk=7", f"sweep.method={method}")
    one = toy.start(*sweep)
    told = one.communicate()[1]
    assert one.returncode == 0, told
    (folder,) = toy.results.iterdir()
    single = toy.data(folder.name)
    shutil.rmtree(folder)
    two = toy.start(*sweep, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    told = two.communicate()[1]
    assert two.returncode == 0, told
    double = toy.data(folder.name)
    (way,) = json.loads((folder / "run.json").read_text())["evaluation"]
    assert way["devices"] == ["cpu", "cpu"]
    # Within one method a point's bits do not depend on the device that it is computed on; how
    # large a batch it shares does matter to vmap, and a chaotic network shows it.
    if method != "vmap":
        assert double.x.identical(single.x)
    assert double.sigma_w.identical(single.sigma_w)
