"""A sweep is one object: the same bits as single runs, one dataset, resumable, failures kept."""

import json
import resource
import shutil
import socket
from typing import Any

import jax
import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab.experiment import loading, schema
from gradlab.running import store
from gradlab.sweeping import join, points
from tests.toys import Toy


def test_a_point_of_a_sweep_has_the_bits_of_the_run_alone(toy: Toy) -> None:
    assert toy.sweep("sigma_w=2.0,3.0", "seed=0,7").status == 0
    data = toy.data("seed=0,7,sigma_w=2.0,3.0")
    shutil.rmtree(toy.store)  # or the runs alone would be the sweep's points
    for sigma_w in (2.0, 3.0):
        for seed in (0, 7):
            toy.run(f"sigma_w={sigma_w}", f"seed={seed}")
            name = [f"seed={seed}"] * (seed != 0) + [f"sigma_w={sigma_w}"] * (sigma_w != 3.0)
            alone = toy.data(",".join(name))
            point = data.sel(sigma_w=sigma_w, seed=seed)
            for variable in ("first", "x", "square", "length"):
                assert point[variable].values.tobytes() == alone[variable].values.tobytes()


def test_all_points_of_one_structure_are_one_compiled_program(toy: Toy) -> None:
    compiled: list[object] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs
        if event.endswith("backend_compile_duration"):
            compiled.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        toy.sweep("sigma_w=1.0,2.0,3.0", "seed=range(0,5)", "depth=2,4", "w=[0.5],[0.7]")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(compute)") == 2


@pytest.mark.parametrize("method", ["each", "vmap"])
def test_a_sweep_holds_the_programs_of_one_structure_at_a_time(
    toy: Toy, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, save, held = jax.devices()[0].client, store.Store.save, []

    def count_and_save(*arguments: Any) -> None:
        held.append(len(client.live_executables()))
        save(*arguments)

    monkeypatch.setattr(store.Store, "save", count_and_save)
    jax.clear_caches()
    assert toy.sweep("depth=range(2,9)", f"sweep.method={method}").status == 0
    assert len(held) == 7
    assert held[-1] <= held[0]


def test_the_swept_parameters_are_the_axes_of_one_dataset(toy: Toy) -> None:
    toy.sweep("sigma_w=2.0,3.0,4.0", "activation=tanh,linear", "seed=0,1")
    (folder,) = toy.results.iterdir()
    data = toy.data(folder.name)
    assert data.first.dims == ("sigma_w", "activation", "seed", "layer")
    assert data.length.dims == ("sigma_w", "activation", "seed")
    assert data.sigma_w.values.tolist() == [2.0, 3.0, 4.0]
    assert data.activation.values.tolist() == ["tanh", "linear"]
    assert data.seed.values.tolist() == [0, 1]
    assert data.attrs["depth"] == 6
    assert "sigma_w" not in data.attrs
    assert "seed" not in data.attrs
    assert data.first.attrs["long_name"] == "first neuron"
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".hydra", "claims.json", "data.nc", "figure.pdf", "figure.png", "figure.svg"),
        "run.json",
    ]
    told = json.loads((folder / "claims.json").read_text())
    claims, headline = told["claims"], told["headline"]
    assert len(claims) == 2 * 12
    assert claims[0]["point"] == {"sigma_w": 2.0, "activation": "tanh", "seed": 0}
    assert [number["value"] for number in headline] == data.length.values.ravel().tolist()


def test_a_swept_list_of_one_value_each_is_the_axis_of_its_values(toy: Toy) -> None:
    assert toy.sweep("w=0.5,0.7,[0.9]").status == 0
    swept = toy.data("w=0.5,0.7,[0.9]")
    toy.run("w=[0.5,0.7,0.9]")
    together = toy.data("w=[0.5,0.7,0.9]")
    xr.testing.assert_equal(swept.square, together.square)
    assert swept.x.dims == ("w", "neuron")
    toy.run("w=0.7")
    assert gl.alone(swept, w=0.7).identical(toy.data("w=0.7"))


def test_swept_lists_of_several_values_are_named_by_their_coordinate(toy: Toy) -> None:
    toy.sweep("w=[0.5,0.6],[0.7,0.8,0.9]", "seed=0,1")
    data = toy.data("seed=0,1,w=[0.5,0.6],[0.7,0.8,0.9]")
    assert data.w.values.tolist() == ["[0.5, 0.6]", "[0.7, 0.8, 0.9]"]
    assert data.square.dims == ("w", "seed", "own_w")
    assert data.num_own_w.values.tolist() == [[2, 2], [3, 3]]
    assert np.isnan(data.square.values[0, 0]).tolist() == [False, False, True]
    toy.run("w=[0.5,0.6]", "seed=1")
    assert gl.alone(data, w=[0.5, 0.6], seed=1).identical(toy.data("seed=1,w=[0.5,0.6]"))


def test_own_axes_of_other_lengths_are_padded_and_each_point_is_the_run_alone(toy: Toy) -> None:
    toy.sweep("depth=2,4", "activation=tanh,linear", "seed=0,1,2")
    data = toy.data("activation=tanh,linear,depth=2,4,seed=0,1,2")
    assert data.first.dims == ("depth", "activation", "seed", "layer")
    assert data.layer.values.tolist() == [0, 1, 2, 3]
    assert data.num_layer.sel(depth=2, activation="linear").values.tolist() == [2, 2, 2]
    assert data.first.attrs["missing_beyond"] == "num_layer"
    assert np.isnan(data.first.sel(depth=2)[..., 2:]).all()
    assert np.isfinite(data.first.sel(depth=4)).all()
    toy.run("depth=2", "activation=linear", "seed=1")
    alone = toy.data("activation=linear,depth=2,seed=1")
    assert gl.alone(data, depth=2, activation="linear", seed=1).identical(alone)
    for wrong in ({"depth": 2}, {"depth": 3, "activation": "tanh", "seed": 0}, {"dept": 2}):
        with pytest.raises(gl.BadInput, match="allowed"):
            gl.alone(data, **wrong)


def test_a_config_group_is_an_axis(toy: Toy) -> None:
    toy.sweep("scale=smoke,full", "sigma_w=2.0,3.0")
    data = toy.data("scale=smoke,full,sigma_w=2.0,3.0")
    assert data.scale.values.tolist() == ["smoke", "full"]
    assert data.first.dims == ("scale", "sigma_w", "layer")
    # Depth 3 at the smoke scale and 6 at the full one.
    assert data.num_layer.values.tolist() == [[3, 3], [6, 6]]


@pytest.mark.parametrize(
    "typed",
    [
        ("depth=2,4", "width=3,5", "activation=tanh,linear", "zip(depth,width,activation)"),
        (
            "points=[{depth:2,width:3,activation:tanh},{depth:4,width:5,activation:linear},"
            "{depth:2,width:3,activation:tanh}]",
        ),
    ],
)
def test_points_that_are_no_grid_are_a_table_beside_the_axes(toy: Toy, typed: list[str]) -> None:
    toy.sweep(*typed, "seed=0,1")
    (folder,) = toy.results.iterdir()
    data = toy.data(folder.name)
    assert data.x.dims == ("point", "seed", "neuron")
    assert data.depth.dims == data.width.dims == data.activation.dims == ("point",)
    one = gl.alone(data, depth=4, width=5, activation="linear", seed=1)
    toy.run("depth=4", "activation=linear", "seed=1")
    assert one.identical(toy.data("activation=linear,depth=4,seed=1"))
    picked = join.selectable(data).sel(depth=2, width=3, activation="tanh", seed=0)
    assert picked.num_neuron == 3


def test_one_failing_point_of_a_grid_leaves_a_table_of_the_others(rendering_toy: Toy) -> None:
    toy = rendering_toy
    ended = toy.sweep(
        "activation=tanh,linear", "width=3,4", "depth=2,3,4", "fail='depth 3 linear 4'"
    )
    (folder,) = toy.results.iterdir()
    data = toy.data(folder.name)
    assert ended.status == 1
    assert data.length.dims == ("activation", "width", "depth")
    missing = np.argwhere(~data.finished.values.astype(bool))
    assert missing.tolist() == [[1, 1, 1]]
    assert np.isnan(data.length.sel(activation="linear", width=4, depth=3))
    with pytest.raises(gl.BadInput, match="was not finished"):
        gl.alone(data, activation="linear", width=4, depth=3)
    manifest = json.loads((folder / "run.json").read_text())
    (failure,) = manifest["failures"]
    assert failure["point"] == {"activation": "linear", "width": 4, "depth": 3}
    assert failure["error"] == "ValueError: this structure raises"
    assert "in compute" in failure["traceback"]
    alone = "python experiments/chaos.py 'fail='\"'\"'depth 3 linear 4'\"'\"'' "
    assert failure["command"] == alone + "activation=linear width=4 depth=3"
    assert "1 of 12 points failed; to repeat each alone:\n  activation=linear" in ended.stderr
    assert failure["command"] in ended.stderr
    assert (folder / "figure.png").stat().st_size > 10_000


def test_a_value_that_raises_at_run_time_fails_alone(toy: Toy) -> None:
    ended = toy.sweep("sigma_w=1.0,2.0,3.0", "fail='value 2'", "sweep.chunk=3")
    assert ended.status == 1
    assert toy.data(next(toy.results.iterdir()).name).finished.values.tolist() == [1, 0, 1]
    assert "sigma_w=2.0: ValueError: this value raises" in ended.stderr


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_compute_the_same_and_isolate_failures_too(toy: Toy, batch: int) -> None:
    how = ("sweep.method=vmap", f"sweep.batch={batch}", "sweep.chunk=3")
    toy.sweep("sigma_w=0.5,0.6,0.7", "fail='value 0.6'", *how)
    data = toy.data(next(toy.results.iterdir()).name)
    assert data.finished.values.tolist() == [1, 0, 1]
    toy.run("sigma_w=0.5")
    # A batched product sums in another order: a few ulps over six layers that contract.
    np.testing.assert_allclose(data.x.values[0], toy.data("sigma_w=0.5").x.values, rtol=1e-13)


def test_a_finished_sweep_is_not_computed_again(toy: Toy) -> None:
    toy.sweep("sigma_w=2.0,3.0")
    before, files = toy.chunks(), toy.files("sigma_w=2.0,3.0")
    again = toy.sweep("sigma_w=2.0,3.0")
    assert "2 of 2 points were finished before" in again.stderr
    assert toy.chunks() == before
    assert toy.files("sigma_w=2.0,3.0") == files
    toy.sweep("sigma_w=2.0,3.0", "sweep.resume=false")
    assert toy.chunks().keys() == before.keys()
    assert len(before) == 2
    assert all(time > before[name] for name, time in toy.chunks().items())
    assert toy.files("sigma_w=2.0,3.0") == files


def test_only_what_is_missing_is_computed(toy: Toy) -> None:
    toy.sweep("seed=range(0,4)", "sweep.chunk=1")
    folder = "seed=range(0,4)"
    before, files = toy.chunks(), toy.files(folder)
    lost = sorted(before)[1]
    (toy.store / lost).unlink()
    (toy.results / folder / "data.nc").unlink()
    assert "3 of 4 points were finished before" in toy.sweep("seed=range(0,4)").stderr
    after = toy.chunks()
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [lost]
    assert toy.files(folder) == files


def test_a_damaged_chunk_is_computed_again(toy: Toy) -> None:
    toy.sweep("seed=0,1", "sweep.chunk=1")
    files = toy.files("seed=0,1")
    path = next((toy.store).glob("*.nc"))
    path.write_bytes(path.read_bytes()[:100])
    assert "1 of 2 points were finished before" in toy.sweep("seed=0,1").stderr
    assert toy.files("seed=0,1") == files


@pytest.mark.parametrize("changed", ["experiment", "config", "precision"])
def test_a_change_of_code_or_value_is_not_mistaken_for_finished(toy: Toy, changed: str) -> None:
    toy.sweep("seed=0,1")
    extra = {"precision": ["precision=float32"]}.get(changed, [])
    old, new = {"experiment": ("x[0]", "x[1]"), "config": ("w: 3.0", "w: 3.25")}.get(
        changed, ("", "")
    )
    path = toy.file if changed == "experiment" else toy.project / "configs" / "chaos.yaml"
    path.write_text(path.read_text().replace(old, new))
    again = toy.sweep("seed=0,1", *extra)
    assert again.status == 0
    assert "finished before" not in again.stderr


def test_a_longer_sweep_computes_what_is_new(toy: Toy) -> None:
    toy.run("seed=1")
    toy.sweep("seed=0,1")
    assert "1 of 3 points" in toy.sweep("seed=1,5,6").stderr
    assert "4 of 4 points" in toy.sweep("seed=6,5,0,1", "results=results").stderr


def test_fail_fast_stops_at_the_first_failure_and_keeps_what_is_done(toy: Toy) -> None:
    arguments = ["sigma_w=1.0,2.0,3.0", "fail='value 2'", "sweep.chunk=1"]
    ended = toy.sweep(*arguments, "sweep.fail_fast=true")
    (folder,) = toy.results.iterdir()
    assert ended.status == 1
    assert len(toy.chunks()) == 1
    assert json.loads((folder / "run.json").read_text())["num_failures"] == 1
    assert "sigma_w=2.0: ValueError: this value raises" in ended.stderr
    assert "1 of 3 points were finished before" in toy.sweep(*arguments).stderr


def test_a_sweep_of_which_every_point_fails_says_so(toy: Toy) -> None:
    ended = toy.sweep("seed=0,1", "fail='value 3'")
    assert ended.status == 1
    assert "2 of 2 points failed" in ended.stderr
    (folder,) = toy.results.iterdir()
    assert not (folder / "data.nc").exists()


def test_a_failed_point_is_tried_again(toy: Toy) -> None:
    toy.sweep("seed=0,1", "fail='value 3'")
    toy.file.write_text(toy.file.read_text().replace("raise ValueError", "ValueError"))
    assert toy.sweep("seed=0,1", "fail='value 3'").status == 0


def test_a_full_disk_loses_nothing(toy: Toy) -> None:
    undisturbed = ["seed=range(0,6)", "width=40", "sweep.chunk=1"]
    toy.sweep(*undisturbed)
    folder = next(toy.results.iterdir()).name
    files = toy.files(folder)
    for name in sorted(toy.chunks())[-2:]:
        (toy.store / name).unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = toy.chunks()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        ended = toy.sweep(*undisturbed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 1
    assert "cannot be written (File too large)" in ended.stderr
    told = [line for line in ended.stderr.splitlines() if not line.startswith("chaos: ")]
    assert len(told) == 2  # beside how far it is, which a slow machine is told
    assert "4 of 6 done; resume with: python experiments/chaos.py --multirun" in told[-1]
    assert toy.chunks() == before
    assert toy.files(folder) == files
    assert toy.sweep(*undisturbed).status == 0
    assert toy.files(folder) == files


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("sigma_w=1,2", [1.0, 2.0]),
        ("sigma_w=choice(1,2)", [1.0, 2.0]),
        ("sigma_w=range(1,3)", [1.0, 2.0]),
        ("sigma_w=range(1,2,0.5)", [1.0, 1.5]),
        ("sigma_w=sort(2,1)", [1.0, 2.0]),
        ("depth=range(2,8,3)", [2, 5]),
        ("depth=range(8,2,-3)", [8, 5]),
        ("sigma_w=sort(range(1.3,0,-0.5))", [0.3, 0.8, 1.3]),
        ("sigma_w=geomspace(1,4,3)", [1.0, 2.0, 4.0]),
        ("sigma_w=linspace(1,2,3)", [1.0, 1.5, 2.0]),
        ("sigma_w=logspace(0,0.5,2)", [1.0, 10**0.5]),
        ("depth=geomspace(2,9,3)", [2, 4, 9]),
        ("sigma_w=1,1.0,2", [1.0, 2.0]),
        ("activation=tanh,'linear'", ["tanh", "linear"]),
        ("scale=glob(*)", ["full", "smoke"]),
        ("scale=glob([f*,s*],exclude=full)", ["smoke"]),
        ("~fail=", None),
    ],
)
def test_the_grammar_is_hydras_own(toy: Toy, typed: str, meant: list[object] | None) -> None:
    if meant is None:
        assert toy.sweep(typed, "seed=0,1").status == 1
        return
    assert "error" not in toy.sweep(typed).stderr
    (folder,) = toy.results.iterdir()
    data = toy.data(folder.name)
    assert data[typed.partition("=")[0]].values.tolist() == meant


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sigma_w=1,-2"], "sigma_w is -2; allowed: a finite number"),
        (["sigma_w=1,two"], "sigma_w is 'two'; allowed: a finite number"),
        (["activation=tanh,sine"], "activation is 'sine'; allowed: one of linear"),
        (["depht=1,2"], "'depht'"),
        (["sigma_w=interval(1,2)"], "'sigma_w=interval(1,2)' has no points of its own"),
        (["scale=glob(x*)"], "'scale=glob(x*)' names nothing"),
        (["seed=range(0,10,0)"], "range(0,10,0) has the step 0; allowed: a step above or below 0"),
        (["seed=range(5,1)"], "range(5,1,1) names nothing; allowed: a step that leads"),
        (["sigma_w=geomspace(0,1,3)"], "geomspace(0,1,3) has an end at 0"),
        (["sigma_w=linspace(0,1)"], "linspace"),
        (["sigma_w=geomspace(1,2,0.5)"], "allowed: geomspace(FIRST,LAST,HOW_MANY)"),
        (["depth=2,3", "zip(depth,width)"], "zip(depth,width) names 'width', which is not swept"),
        (["depth=2,3", "width=2,3,4", "zip(depth,width)"], "has 2 of depth and 3 of width values"),
        (["points=[{depth:2},{width:3}]"], "each with the same keys"),
        (["depth=2,3", "points=[{depth:2}]"], "'depth' is swept, and is a key of points"),
        (["scale=smoke,medium"], "'medium'"),
        (["results=a,b"], "'results=a,b' is no sweep of values"),
        (["seed=0,-1"], "seed is -1; allowed: a whole number at least 0"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    toy: Toy, arguments: list[str], sentence: str
) -> None:
    ended = toy.sweep(*arguments)
    assert ended.status == 1
    assert ended.stderr.startswith("error: ")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not toy.results.exists()


def test_points_are_grouped_as_their_pytrees_are(toy: Toy) -> None:
    config = loading.load(toy.file).module.Config
    base: dict[str, Any] = {
        "activation": "tanh", "depth": 2, "width": 3, "sigma_w": 1.0, "w": [1.0], "fail": "no",
    }  # fmt: skip
    changes: list[dict[str, Any]]
    changes = [{}, {"sigma_w": 2.0}, {"w": [2.0]}, {"w": [1.0, 2.0]}, {"depth": 3}, {"fail": "x"}]
    cfgs = [schema.read(config, base | change) for change in changes]
    made = [points.Point(cfg, 0, "float64", str(n)) for n, cfg in enumerate(cfgs)]
    shapes = [
        (jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)])
        for tree in map(schema.arrays, cfgs)
    ]
    for one, shape in zip(made, shapes, strict=True):
        for other, other_shape in zip(made, shapes, strict=True):
            alike = points.structure(one) == points.structure(other)
            assert alike == (shape == other_shape)


OF_THE_WHOLE = """

def sweep_figure(data):
    drawn, (axes,) = gl.figures.panels()
    axes.set_title(f"over {data.sizes['sigma_w']} scales", loc="left")
    return drawn


def sweep_claims(data):
    yield gl.Claim("every length is below 1", data.length.max(), SIGN 1.0, {}, "tanh", "<=")
"""


@pytest.mark.parametrize(("sign", "status"), [("", 0), ("-", 1)])
def test_an_experiment_draws_and_judges_its_sweep_as_a_whole(
    toy: Toy, sign: str, status: int
) -> None:
    own = OF_THE_WHOLE.replace("SIGN ", sign)
    toy.file.write_text(toy.file.read_text().replace("\n\nFAULTS", f"{own}\n\nFAULTS"))
    ended = toy.sweep("sigma_w=1.0,2.0,3.0", "depth=2")
    assert ended.status == status
    (folder,) = toy.results.iterdir()
    assert toy.files(folder.name)["figure.png"] == b"['over 3 scales']"
    told = json.loads((folder / "claims.json").read_text())
    (claim,) = told["claims"]  # in the place of those of each point
    assert claim["sentence"] == "every length is below 1"
    assert claim["verdict"] == ("fails" if status else "holds")
    assert len(told["headline"]) == 3  # of each point all the same
    assert "every length is below 1" in ended.stdout


def test_a_sweep_without_axes_is_a_single_run(toy: Toy) -> None:
    toy.sweep("sigma_w=2.0")
    swept = toy.files("sigma_w=2.0")
    shutil.rmtree(toy.store)
    toy.run("sigma_w=2.0")
    assert toy.files("sigma_w=2.0") == swept


def test_redraw_draws_a_sweep_again_without_computing(toy: Toy) -> None:
    toy.sweep("seed=0,1")
    files, chunks = toy.files("seed=0,1"), toy.chunks()
    (toy.results / "seed=0,1" / "figure.png").unlink()
    toy.file.write_text(toy.file.read_text().replace("x[0]", "x[1]"))  # whatever the code says now
    toy.sweep("seed=0,1", "redraw=true")
    assert toy.files("seed=0,1") == files
    assert toy.chunks() == chunks
    nothing = toy.sweep("seed=2,3", "redraw=true")
    assert nothing.status == 1
    assert "holds no finished point" in nothing.stderr


def test_what_older_code_left_stays_and_is_found_again(toy: Toy) -> None:
    toy.sweep("seed=0,1")
    before, code = toy.chunks(), toy.file.read_text()
    toy.file.write_text(code.replace("x[0]", "x[1]"))
    toy.sweep("seed=0,1")
    assert before.items() < toy.chunks().items()
    toy.file.write_text(f"{code}# as before\n")
    assert "2 of 2 points were finished before" in toy.sweep("seed=0,1").stderr


def test_temporary_files_of_a_killed_process_are_removed(toy: Toy) -> None:
    toy.sweep("seed=0,1")
    child = 2**22 + 1  # above the kernel's largest number of a process
    left = toy.results / "seed=0,1" / f".data.nc.{socket.gethostname()}.{child}.abc.tmp"
    left.write_bytes(b"part")
    toy.sweep("seed=0,1")
    assert not left.exists()


def test_values_are_read_from_disk_by_other_tools(toy: Toy) -> None:
    toy.sweep("activation=tanh,linear", "seed=0,1")
    (folder,) = toy.results.iterdir()
    with xr.open_dataset(folder / "data.nc", engine="h5netcdf") as data:
        assert [str(name) for name in data.activation.values] == ["tanh", "linear"]


def test_the_command_of_a_run_is_told_in_its_manifest(toy: Toy) -> None:
    toy.sweep("seed=0,1")
    manifest = json.loads((toy.results / "seed=0,1" / "run.json").read_text())
    assert manifest["command"] == "python experiments/chaos.py --multirun seed=0,1"
    assert manifest["sweep"] == {"seed": [0, 1]}
    assert manifest["evaluation"][0]["method"] == "each"
