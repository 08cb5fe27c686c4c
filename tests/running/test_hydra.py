"""What a Hydra user expects: groups, presets, snapshots, options, completion, own configs."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
import yaml
from hydra import compose
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from gradlab.experiment import loading, schema
from gradlab.models.activations import PHI
from gradlab.running import composition
from gradlab.theory import meanfield
from tests.toys import Toy, typed

CONFIGS = Path(__file__).parent.parent.parent / "configs"
EXPERIMENTS = CONFIGS.parent / "experiments"
PRESETS = sorted((CONFIGS / "experiment").glob("*.yaml"))
INITS = sorted((CONFIGS / "init").glob("*.yaml"))


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("preset", PRESETS, ids=by_name)
def test_a_preset_sets_what_it_says_in_its_own_experiment(preset: Path) -> None:
    written = composition.content(preset)
    exp = loading.load(EXPERIMENTS / f"{written.pop('experiment')}.py")
    with composition.hydra_told_of(exp):
        cfg = compose(exp.name, overrides=[f"+experiment={preset.stem}"])
    _, read = composition.read(exp, composition.plain_values(cfg))
    assert {name: schema.values(read)[name] for name in written} == written
    assert preset.read_text().startswith("# @package _global_\n# ")


@pytest.mark.parametrize("preset", PRESETS, ids=by_name)
def test_a_preset_is_refused_by_another_experiment(preset: Path) -> None:
    meant = composition.content(preset)["experiment"]
    other = "wall" if meant != "wall" else "singular_value_spectrum"
    ended = typed(EXPERIMENTS / f"{other}.py", f"+experiment={preset.stem}")
    assert ended.status == 1
    assert f"is for '{meant}', not for '{other}'" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_an_initialisation_is_for_every_experiment_that_has_its_keys(experiment_file: Path) -> None:
    exp = loading.load(experiment_file)
    with composition.hydra_told_of(exp):
        for init in INITS:
            written, over = composition.content(init), [f"+init={init.stem}"]
            if set(written) <= {entry.name for entry in schema.entries(exp.module.Config)}:
                cfg = compose(exp.name, overrides=over)
                assert written.items() <= composition.plain_values(cfg).items()
            else:
                with pytest.raises(ConfigCompositionException):
                    compose(exp.name, overrides=over)


@pytest.mark.parametrize("init", INITS, ids=by_name)
def test_an_initialisation_is_refused_by_another_experiment_in_one_sentence(init: Path) -> None:
    ended = typed(EXPERIMENTS / "format_ends.py", f"+init={init.stem}")
    assert ended.status == 1
    assert f"'+init={init.stem}' sets the key '" in ended.stderr
    assert "which 'format_ends' does not have; allowed: an exp" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_tanh_is_critical_where_the_group_says() -> None:
    where = composition.content(CONFIGS / "init" / "critical_tanh.yaml")
    chi_1 = meanfield.chi_1(PHI["tanh"], jnp.asarray(where["sigma_w"]), where["sigma_b"])
    # sigma_w is rounded to 2^-53 of itself, and chi_1 varies less than twice as fast as sigma_w;
    # the quadrature is right to 1e-13.
    assert abs(float(chi_1) - 1) < 1e-12


def test_physics_comes_first_in_what_is_shown(toy: Toy) -> None:
    shown = list(yaml.safe_load(toy.run("--cfg", "job").stdout))
    own = [entry.name for entry in schema.entries(loading.load(toy.file).module.Config)]
    assert shown == [
        *own, "seed", "precision", "results", "redraw", "experiment", "sweep",
    ]  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
def test_a_run_leaves_hydras_snapshot(toy: Toy, several: bool) -> None:
    arguments = ["seed=0,1", "--multirun"] if several else ["seed=3"]
    assert toy.run("depth=3", *arguments).status == 0
    (folder,) = toy.results.iterdir()
    config, hydra, overrides = (
        OmegaConf.load(folder / ".hydra" / f"{name}.yaml")
        for name in ("config", "hydra", "overrides")
    )
    assert config.depth == 3
    assert "hydra" not in config
    assert list(overrides) == ["depth=3", arguments[0]]
    assert hydra.hydra.overrides.task == overrides
    assert hydra.hydra.runtime.output_dir == str(folder)
    assert hydra.hydra.job.name == "chaos"
    assert hydra.hydra.runtime.choices.scale == "full"


def test_options_stand_anywhere(toy: Toy) -> None:
    for option, place in itertools.product(("--multirun", "-m"), (0, 1, 2)):
        words = ["scale=smoke", "seed=0,1"]
        words.insert(place, option)
        assert toy.run(*words).status == 0
        assert toy.data("scale=smoke,seed=0,1").sizes["seed"] == 2
        shutil.rmtree(toy.results)  # its points are in the store


def test_a_config_folder_of_ones_own_holds_presets_and_sweeps(toy: Toy, tmp_path: Path) -> None:
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /scale: smoke\n\nsigma_w: 1.5\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    assert toy.run("--config-dir", str(own.parent), "+experiment=mine").status == 0
    data = toy.data("experiment=mine,seed=0,1")
    assert data.attrs["sigma_w"] == 1.5
    assert data.attrs["depth"] == 3
    assert data.seed.values.tolist() == [0, 1]


def test_a_sweep_over_presets_is_a_sweep(toy: Toy) -> None:
    (toy.project / "configs" / "experiment" / "loud.yaml").write_text(
        "# @package _global_\nexperiment: chaos\nsigma_w: 4.0\n"
    )
    assert toy.sweep("+experiment=calm,loud").status == 0
    data = toy.data("experiment=calm,loud")
    assert data.coords["experiment"].values.tolist() == ["calm", "loud"]


def test_another_config_of_the_same_experiment_has_a_folder_of_its_own(toy: Toy) -> None:
    text = (toy.project / "configs" / "chaos.yaml").read_text()
    (toy.project / "configs" / "other.yaml").write_text(text.replace("depth: 6", "depth: 4"))
    assert toy.run("--config-name", "other").status == 0
    assert toy.data("config_name=other").attrs["depth"] == 4


def test_hydras_own_folders_are_taken_where_they_are_asked_for(toy: Toy, tmp_path: Path) -> None:
    single, several = tmp_path / "one", tmp_path / "many"
    assert toy.run("depth=0", f"hydra.run.dir={single}").status == 1
    assert not single.exists()
    assert toy.run(f"hydra.run.dir={single}").status == 0
    assert toy.sweep(f"hydra.sweep.dir={several}", "seed=0,1").status == 0
    for folder in (single, several):
        assert (folder / "data.nc").exists()
        assert (folder / ".hydra" / "config.yaml").exists()
    assert not toy.results.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["hydra.job.chdir=true"], "hydra.job.chdir is true; allowed: false"),
        (["hydra.output_subdir=x"], "allowed: .hydra, in the folder of each run"),
        (["hydra.sweep.subdir=x"], "hydra.sweep.subdir is 'x'; allowed: '.'"),
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["--multirun", "--cfg", "job"], "only one of --run, --multirun, --cfg"),
        (["--resolve"], "--resolve is for --cfg alone"),
        (["--config-name", "nope"], "config 'nope' is not known; allowed: chaos"),
        (["--config-dir", "nowhere"], "nowhere' not found"),
        (["hydra/launcher=nope"], "'nope' is not known"),
        (["init=he"], "'init' has no choice to be changed; allowed: +init=he"),
        (["+experiment=nope"], "'nope' is not known"),
        (["+depth=3"], "'depth' is there already; allowed: depth=VALUE"),
        (["~depth"], "key 'depth' is missing"),
        (["depth@there=3"], "'depth@there=3' names the group 'depth', which there is not"),
        (["sweep_method=vmap"], "key 'sweep_method' is now called 'sweep.method'"),
        (
            ["cluster_width=2"],
            "key 'cluster_width' is now called 'hydra.launcher.array_parallelism'",
        ),
        (["resume=false"], "key 'resume' is now called 'sweep.resume'"),
        (["scales=smoke"], "key 'scales' is now called 'scale'"),
        (["widths=3"], "key 'widths' is now called 'width'"),
        (["dtypes=float32"], "key 'dtypes' is not known"),  # no experiment's key here is dtype
        (["--multirun", "sweep.method=each,vmap"], "is no sweep of values"),
        (["--multirun", "hydra.sweeper.params=3"], "hydra.sweeper.params is 3; allowed: {key"),
        (["--multirun", "+hydra.sweeper.params.seed=0,1"], "is no sweep of values; allowed: one"),
        (["-z"], "unrecognized arguments: -z; allowed: what --help"),
        (["hydra.job.nme=1"], "key 'hydra.job.nme' is not known; did you mean 'hydra.job.name'?"),
        (["hydra.verbose=3"], "a key of Hydra has a value of another type; allowed: what --help"),
        (["hydra.run.dir=/proc/x/y"], "'/proc/x' cannot be written (No such file or directory)"),
        (["results="], "results is ''; allowed: the name of a folder"),
        (["--multirun", "points=[]"], "points is []; allowed: points=[{KEY:VALUE"),
        (["--multirun", "seed=0,1", "zip(seed,seed)"], "zip names 'seed' twice; allowed: each"),
        (["--multirun", "seed=0,1", "hydra.sweeper.zip=1"], "zip is 1; allowed: [[KEY,KEY]"),
        (["--multirun", "seed=0,1", "hydra.sweeper.params={nope:1}"], "key 'nope' is not known"),
        (["--multirun", "gain=linspace(1,inf,3)"], "linspace(1,inf,3) is no list of numbers"),
        (["--multirun", "gain=linspace(1,2,2000000)"], "too many values; allowed: at most 1000000"),
        (
            ["--multirun", "depth=range(1,3000000)"],
            "names 2999999 values; allowed: at most 1000000",
        ),
        (["--multirun", "gain=range(0,1e9,1e-3)"], "more values than there may be; allowed: at"),
        (["+hydra.sweeper.params.seed='0,1'"], "is for sweeps; allowed: --multirun with it"),
        (["hydra/launcher=joblib"], "is for sweeps; allowed: --multirun with it"),
        (
            ["--multirun", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0"],
            "hydra.launcher.n_jobs is 0; allowed: 1 or more",
        ),
    ],
)
def test_what_is_not_possible_is_told_in_one_sentence(
    toy: Toy, arguments: list[str], sentence: str
) -> None:
    ended = toy.run(*arguments)
    assert ended.status == 1
    assert ended.stderr.startswith("error: ")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not toy.results.exists()


def test_the_sweepers_params_are_lines_of_the_sweep_unless_their_keys_are_typed(toy: Toy) -> None:
    params = "hydra.sweeper.params={seed:'0,1',depth:2}"
    assert toy.sweep(params, "depth=3").status == 0
    (folder,) = toy.results.iterdir()
    assert folder.name == "depth=3,seed=0,1"
    assert toy.data(folder.name).first.sizes == {"seed": 2, "layer": 3}


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--cfg", "hydra"], "GradlabSweeper"),
        (["--cfg", "all"], "sigma_w: 3.0"),
        (["--cfg", "job", "--package", "sweep"], "# @package sweep"),
        (["--cfg", "job", "--resolve"], "depth: 3"),
        (["--info"], "Defaults List"),
        (["--info", "defaults"], "scale/smoke"),
        (["--info", "config"], "scale: smoke"),
        (["--info", "plugins"], "GradlabSweeper"),
        (["--info", "searchpath"], "configs"),
        (["--hydra-help"], "hydra/launcher"),
        (["--version"], "Hydra 1.3"),
        (["--help"], "+experiment=calm"),
        (["--shell-completion", "install=bash"], "complete"),
    ],
)
def test_hydras_options_show_what_they_say(toy: Toy, arguments: list[str], shown: str) -> None:
    scale = ["scale=smoke"] * ({"--shell-completion", "--hydra-help"} & set(arguments) == set())
    ended = toy.run(*scale, *arguments)
    assert ended.status == 0
    assert shown in ended.stdout
    assert not toy.results.exists()


@pytest.mark.parametrize(
    ("typed_so_far", "offered"),
    [
        ("dep", {"depth="}),
        ("scale=", {"scale=full", "scale=smoke"}),
        ("scale=sm", {"scale=smoke"}),
        ("+experiment=ca", {"+experiment=calm"}),
        ("sweep.m", {"sweep.method="}),
        ("scale=s", {"scale=smoke"}),
        ("hydra/launcher=jo", {"hydra/launcher=joblib"}),
    ],
)
def test_the_shell_completes_keys_groups_and_choices(
    toy: Toy, typed_so_far: str, offered: set[str]
) -> None:
    line = f"python experiments/chaos.py {typed_so_far}"
    done = subprocess.run(
        [sys.executable, "experiments/chaos.py", "-sc", "query=bash"],
        cwd=toy.project,
        env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) == offered


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\tdepth: 3\n", "line 1, column 1: "),
        (b"depth: [1\nwidth: 2\n", "line 2, column "),
        (b"depth: 1\ndepth: 2\n", "line 2, column 1: found duplicate key depth"),
        (b"depth: caf\xe9\n", "'utf-8' codec can't decode"),
        (b"depth: &a [*a]\n", "it contains itself"),
        (b"depth: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        (b"depth: ${\n", "a '${' in it is no reference"),
        (b"- depth\n", "is a list; allowed: "),
    ],
)
def test_a_config_that_cannot_be_read_is_told_with_the_place(
    tmp_path: Path, content: bytes, what: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    said = composition.damage(path)
    assert said.startswith(f"'{path}' ")
    assert what in said
    assert said.endswith("allowed: a YAML file in UTF-8 with a value per key")
