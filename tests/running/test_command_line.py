"""The one door: from a command line to files and an exit status, and bad input in one sentence."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlab.experiment import loading
from gradlab.running import composition, naming, refusals
from tests.toys import Toy


def test_a_run_leaves_its_files_in_the_experiments_folder(rendering_toy: Toy) -> None:
    assert rendering_toy.run().status == 0
    assert sorted(path.name for path in rendering_toy.results.iterdir()) == [
        ".hydra", "claims.json", "data.nc", "figure.pdf", "figure.png", "figure.svg", "run.json",
    ]  # fmt: skip
    manifest = json.loads((rendering_toy.results / "run.json").read_text())
    assert manifest["command"] == "python experiments/chaos.py"
    assert manifest["config"]["depth"] == 6
    assert manifest["seed"] == 0
    assert manifest["precision"] == "float64"


def test_the_same_command_leaves_the_same_bytes(rendering_toy: Toy) -> None:
    rendering_toy.run("seed=3")
    files = rendering_toy.files("seed=3")
    rendering_toy.run("seed=3", "sweep.resume=false")
    assert rendering_toy.files("seed=3") == files


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["depth=4"], "depth=4"),
        (["seed=3", "depth=4"], "depth=4,seed=3"),
        (["depth=6"], ""),
        (["w=0.5"], ""),
        (["w=[0.5,0.7]"], "w=[0.5,0.7]"),
        (["scale=smoke"], "scale=smoke"),
        (["scale=smoke", "depth=3"], "scale=smoke"),
        (["scale=full"], ""),
        (["scale=smoke", "depth=6"], "depth=6,scale=smoke"),
        (["++depth=4"], "depth=4"),
        (["+experiment=calm"], "experiment=calm"),
        (["+experiment=calm", "sigma_w=2.0"], "experiment=calm"),
        (["+experiment=calm", "sigma_w=3.0"], "experiment=calm,sigma_w=3.0"),
        (["+experiment=calm", "seed=1,2"], "experiment=calm,seed=1,2"),
        (["scale=full,smoke"], "scale=full,smoke"),
        (["scale=full,smoke", "depth=6"], "depth=6,scale=full,smoke"),
        (["w=[1, 0.50]"], "w=[1,0.50]"),
        (["fail='a b'"], "fail=a~20b"),
        (["fail='null'"], "fail='null'"),  # a text, and not what null stands for
        (["fail='1e3'"], "fail='1e3'"),
        (["fail='calm'"], "fail=calm"),
        (["fail=ab"], "fail=ab"),
        (["fail='a/b'"], "fail=a~2Fb"),
        (["fail=a_b"], "fail=a_b"),
        (["sweep.method=vmap", "sweep.chunk=3"], "sweep.method=vmap"),
        (["results=elsewhere", "redraw=false", "sweep.resume=true", "sweep.tries=0"], ""),
    ],
)
def test_a_folder_is_named_by_what_differs_from_the_config(
    toy: Toy, arguments: list[str], name: str
) -> None:
    with composition.hydra_told_of(loading.load(toy.file)):
        assert naming.name("chaos", "chaos", arguments) == name


def test_a_very_long_name_is_cut_and_stays_its_own(toy: Toy) -> None:
    values = [f"w=[{','.join(f'0.{digit}' for digit in range(last))}]" for last in (100, 101)]
    with composition.hydra_told_of(loading.load(toy.file)):
        names = [naming.name("chaos", "chaos", [value]) for value in values]
    assert all(len(name) <= 200 for name in names)
    assert names[0] != names[1]


def test_a_claim_that_fails_ends_with_status_one_after_all_is_written(toy: Toy) -> None:
    ended = toy.run("activation=linear", "sigma_w=3.0", "depth=30")
    assert ended.status == 1
    assert "FAILS" in ended.stdout
    folder = toy.results / "activation=linear,depth=30"
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    verdicts = [claim["verdict"] for claim in claims]
    assert verdicts == ["fails", "holds"]
    assert (folder / "run.json").exists()


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("depht=3", "key 'depht' is not known; did you mean 'depth'?"),
        ("depth=0", "depth is 0; allowed: a whole number at least 1"),
        ("depth=-1", "depth is -1; allowed: a whole number at least 1"),
        ("depth=2.5", "depth is '2.5'; allowed: a whole number at least 1"),
        ("depth=deep", "depth is 'deep'; allowed: a whole number at least 1"),
        ("sigma_w=nan", "sigma_w is nan; allowed: a finite number"),
        ("sigma_w=inf", "sigma_w is inf; allowed: a finite number"),
        ("sigma_w=1e9", "sigma_w is 1000000000.0; allowed: a finite number"),
        ("w=[]", "w is an empty list; allowed: a finite number"),
        ("w=[0.5,0.7,0.50]", "w is [0.5, 0.7, 0.5], with 0.5 twice; allowed: each value"),
        ("redraw=2", "redraw is 2; allowed: true or false"),
        ("sweep.resume=yes", "sweep.resume is 'yes'; allowed: true or false"),
        ("depth=${nope}", "depth is '${nope}', which refers to a key that there is not; allowed"),
        ("scale=null", "scale 'null' is not known; did you mean 'full'? allowed: full, smoke"),
        (
            "depth=${oc.env:GRADLAB_NOPE}",
            "depth is '${oc.env:GRADLAB_NOPE}', which cannot be looked",
        ),
        ("hydra/launcher=1", "Config group override must be a string or a list. Got int; allowed:"),
        ("hydra.run.dir=[null]", "'hydra.run.dir=[null]' cannot be set; allowed: key=value"),
        ("w=[1,", "'w=[1,' cannot be read; allowed: key=value"),
        ("=3", "'=3' has no key; allowed: key=value"),
        ("depth=10000000 width=65536", "'chaos' needs "),
        ("w=[0.5,two]", "w is [0.5, 'two']; allowed: a finite number"),
        ("activation=sine", "activation is 'sine'; allowed: one of linear, tanh"),
        ("precision=float16", "precision is 'float16'; allowed: one of float32, float64"),
        ("scale=medium", "'medium' is not known; allowed: full, smoke"),
        ("seed=-1", "seed is -1; allowed: a whole number at least 0"),
        ("cluster=slurm", "'cluster' is now called 'hydra/launcher'; allowed: hydra/launcher=jobl"),
        ("cluster.memory=4", "key 'cluster.memory' is now called 'hydra.launcher.mem_gb'"),
        ("hydra/launcher=jblib", "'jblib' is not known; did you mean 'joblib'? allowed: basic"),
        ("hydra/sweeper=basic hydra/launcher=basic", "allowed: one of the two beside the suite's"),
        ("cluster.kind=slurm", "'cluster.kind' is now called 'hydra/launcher'"),
        ("sweep.tries=-1", "sweep.tries is -1; allowed: a whole number at least 0"),
        ("sweep=fast", "sweep is 'fast'; allowed: sweep.method, sweep.batch"),
        ("depth", "error: "),
        ("seed=0,1", "error: "),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    toy: Toy, argument: str, sentence: str
) -> None:
    ended = toy.run(*argument.split())
    assert ended.status == 1
    assert ended.stderr.startswith("error: ")
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not toy.results.exists()


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "moon"), ("JAX_ENABLE_X64", "maybe")]
)
def test_what_a_process_was_started_with_is_told(toy: Toy, name: str, value: str) -> None:
    started = toy.start(**{name: value})
    _, stderr = started.communicate()
    assert started.returncode == 1
    assert f"error: {name} is set to '{value}'" in stderr
    assert stderr.count("\n") == 1
    assert not (toy.results / "data.nc").exists()


def test_a_place_that_is_full_is_told_of_what_is_printed() -> None:
    told = refusals.of_surroundings(OSError(errno.ENOSPC, "No space left on device"))
    assert "what is printed cannot be written" in str(told)
    assert refusals.of_surroundings(OSError(errno.ENOSPC, "No space", "results/data.nc")) is None
    assert refusals.of_surroundings(ValueError("this structure raises")) is None


def test_a_results_folder_that_is_a_file_is_told(toy: Toy) -> None:
    (toy.project / "taken").write_text("a file\n")
    ended = toy.run("results=taken")
    assert ended.status == 1
    assert "cannot be written (Not a directory)" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_damaged_dataset_is_told_where_it_is_read(toy: Toy) -> None:
    toy.run()
    path = toy.results / "data.nc"
    path.write_bytes(path.read_bytes()[:50])
    ended = toy.run("redraw=true")
    assert ended.status == 1
    assert "data.nc' is damaged" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_defect_of_an_experiment_keeps_its_traceback(toy: Toy) -> None:
    with pytest.raises(ValueError, match="this structure raises"):
        toy.run("fail='depth 6 tanh 5'")


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_end_says_so_in_one_line(toy: Toy, asked: signal.Signals) -> None:
    process = toy.start("fail='sleep 60'")
    while not toy.results.exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(asked)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + asked, told
    assert told.splitlines()[-1].startswith("interrupted: ")
    assert "to go on: python experiments/chaos.py" in told.splitlines()[-1]
    assert not list(toy.project.rglob("*.tmp"))


def test_an_interruption_inside_a_callback_of_jax_ends_with_130_too(toy: Toy) -> None:
    _, told = (process := toy.start("fail='sleep not, but interrupt'")).communicate(timeout=60)
    assert process.returncode == 130, told
    assert told.splitlines()[-1].startswith("interrupted: ")


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job")])
def test_help_and_config_are_told_without_jax(toy: Toy, arguments: tuple[str, ...]) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['experiments/chaos.py', *{arguments!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'jax', 'numpy', 'xarray', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=toy.project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sigma_w" in done.stdout


def test_two_runs_at_once_leave_whole_files(toy: Toy) -> None:
    both = [toy.start("seed=1") for _ in range(2)]
    assert [process.communicate() and process.returncode for process in both] == [0, 0]
    folder = toy.results / "seed=1"
    assert toy.data("seed=1").sizes["layer"] == 6
    assert not list(Path(folder).rglob("*.tmp"))
