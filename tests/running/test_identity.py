"""A point is found again after what does not compute changed, and never after what does."""

import json
import os
import py_compile
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradlab.experiment import loading, schema
from gradlab.running import identity, recall
from gradlab.running.identity import Namer
from tests.toys import PROJECT


def name(
    lab: Path, method: str = "each", seed: int = 0, store: Path | None = None, **values: Any
) -> str:
    exp = loading.load_anew(lab / "experiments" / "twice.py")
    given = {"w": [0.5, 1.0], "depth": 3, "gain": 1.0} | values
    return Namer(exp, method, store=store)(schema.read(exp.module.Config, given), seed, "float64")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


LOOKS = {
    "a comment": ("twice.py", "def compute", "# what it does\ndef compute"),
    "a docstring": ("helper.py", "The sine.", "The sine, of radians."),
    "the question": ("twice.py", "What is twice the sine?", "How large is it?"),
    "the figure": ("twice.py", "axes.plot", "axes.scatter"),
    "the claims": ("twice.py", "9.0", "8.0"),
    "the order of keys": (
        "twice.py",
        '    depth: int\n    gain: float = gl.key("a factor")',
        '    gain: float = gl.key("another word")\n    depth: int',
    ),
    "formatting": ("helper.py", "return jnp.sin(x)", "return (\n        jnp.sin(x)\n    )"),
    "a name inside": ("twice.py", "phi = helper.sine", "phi = of = helper.sine"),
}


@pytest.mark.parametrize("what", LOOKS)
def test_what_only_looks_at_results_changes_no_name(lab: Path, what: str) -> None:
    before = name(lab)
    file, old, new = LOOKS[what]
    edit(lab / "experiments" / file, old, new)
    assert name(lab) == before


COMPUTES = {
    "a number in compute": ("twice.py", "noise + DATA", "noise + DATA + 1"),
    "a constant of a helper": ("helper.py", "FACTOR = 2.0", "FACTOR = 2.5"),
    "a function of a helper": ("helper.py", "jnp.sin(x)", "jnp.cos(x)"),
    "a file that is read": ("data.txt", "3.0", "3.5"),
    "a label": ("twice.py", 'twice the sine")', 'the sine")'),
    "a unit": ("twice.py", 'units="m"', 'units="s"'),
    "an axis": ("twice.py", '"draw"', '"draws"'),
    "a format": ("twice.py", "noise + DATA", "(noise + DATA).astype(jnp.float32)"),
    "a name of an array": ("twice.py", '"noise":', '"other":'),
}


@pytest.mark.parametrize("what", COMPUTES)
def test_what_computes_changes_the_name(lab: Path, what: str) -> None:
    before = name(lab)
    file, old, new = COMPUTES[what]
    edit(lab / "experiments" / file, old, new)
    assert name(lab) != before


def test_values_seed_and_method_are_in_the_name(lab: Path) -> None:
    names = [
        *(name(lab), name(lab, seed=1), name(lab, method="vmap 0"), name(lab, w=[0.5, 1.5])),
        *(name(lab, w=[0.5, np.nextafter(1.0, 2.0)]), name(lab, gain=2.0), name(lab, w=[0.5])),
    ]
    assert len(set(names)) == len(names)
    assert name(lab) == names[0]


def test_a_flag_that_the_program_depends_on_is_in_the_name(lab: Path) -> None:
    import jax

    before = name(lab)
    for flag, value in (("jax_threefry_partitionable", False), ("jax_enable_custom_prng", True)):
        kept = jax.config.values[flag]
        jax.config.update(flag, value)
        try:
            jax.clear_caches()
            assert name(lab) != before
        finally:
            jax.config.update(flag, kept)
            jax.clear_caches()
    assert name(lab) == before


@pytest.mark.parametrize("where", ["version", "device", "XLA_FLAGS"])
def test_what_the_program_runs_on_is_in_the_name(
    lab: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = name(lab)
    if where == "version":
        monkeypatch.setattr("gradlab.running.provenance.versions", lambda _: {"jax": "another"})
    elif where == "device":
        monkeypatch.setattr("jax.devices", lambda: [type("Device", (), {"device_kind": "X"})()])
    else:
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert name(lab) != before


def test_constants_are_in_the_text_of_a_program() -> None:
    import jax

    assert jax.config.values["jax_use_simplified_jaxpr_constants"] is False


CALLBACK = (
    "phi = helper.sine",
    "phi = lambda w: jax.pure_callback(helper.told, w, w)",
    "\n\ndef told(x):\n    global asked\n    asked = True\n    return numpy.sin(x)  # radians\n",
)


def test_the_code_of_a_callback_is_in_the_name_and_its_comments_are_not(lab: Path) -> None:
    edit(lab / "experiments" / "twice.py", *CALLBACK[:2])
    helper = lab / "experiments" / "helper.py"
    helper.write_text(
        helper.read_text().replace("from grad", "import numpy\nfrom grad") + CALLBACK[2]
    )
    before = name(lab)
    edit(helper, "# radians", "# of radians")
    edit(lab / "experiments" / "twice.py", "axes.plot", "axes.scatter")
    edit(lab / "experiments" / "twice.py", "9.0", "8.0")
    assert name(lab) == before
    edit(helper, "numpy.sin(x)", "numpy.cos(x)")
    assert name(lab) != before


@pytest.mark.parametrize("how", ["from .inner import told", "from . import inner as told"])
def test_code_that_a_callback_reaches_through_dots_is_in_the_name(lab: Path, how: str) -> None:
    package = lab / "elsewhere" / "dotted_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(how)
    (package / "inner.py").write_text("FACTOR = 2.0\n")
    file = package / "__init__.py"
    module = types.ModuleType("dotted_package")
    inner = types.ModuleType("dotted_package.inner")
    module.__file__, inner.__file__ = str(file), str(package / "inner.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "dotted_package", module)
        patch.setitem(sys.modules, "dotted_package.inner", inner)
        assert package / "inner.py" in identity._reached(file)


def test_code_beside_that_nothing_imports_by_name_is_in_the_name_of_a_callback(lab: Path) -> None:
    edit(lab / "experiments" / "twice.py", *CALLBACK[:2])
    helper = lab / "experiments" / "helper.py"
    helper.write_text(f"{helper.read_text()}\nimport numpy\n{CALLBACK[2]}")
    loaded = lab / "experiments" / "loaded_by_hand.py"
    loaded.write_text("FACTOR = 2.0\n")
    before = name(lab)
    edit(loaded, "2.0", "3.0")
    assert name(lab) != before


def test_a_file_that_is_read_while_a_program_runs_is_in_its_name(lab: Path) -> None:
    store, read = lab / "store", lab / "table.txt"
    store.mkdir()
    read.write_text("1.0")
    without = name(lab, store=store)
    edit(lab / "experiments" / "twice.py", *CALLBACK[:2])
    helper = lab / "experiments" / "helper.py"
    helper.write_text(f"{helper.read_text()}\nimport numpy\n{CALLBACK[2]}")
    before = name(lab, store=store)
    with recall.noted(store):
        read.read_text()
        (store / "finished").write_text("its own")
    assert json.loads((store / "read.json").read_text()) == [str(read)]
    noted = name(lab, store=store)
    read.write_text("2.0")
    assert len({before, noted, name(lab, store=store)}) == 3
    # What calls nothing while it runs has read all before.
    edit(lab / "experiments" / "twice.py", *reversed(CALLBACK[:2]))
    assert name(lab, store=store) == without


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, True) for name in ("lapack_dgeqrf_ffi", "cusolver_getrf_ffi", "cublas$gemm")),
        *((name, True) for name in ("cu_threefry2x32_ffi", "Sharding", "hipsolver_syevd_ffi")),
        *((name, False) for name in ("xla_ffi_python_cpu_callback", "custom_kernel", "curious")),
        *((name, False) for name in ("hippo", "Sharding_of_mine", "my_lapack_call", "cu_mine")),
    ],
)
def test_only_what_jax_itself_calls_is_known_by_its_name(name: str, known: bool) -> None:
    assert bool(identity._JAX_CALLS.match(name)) == known


# ---- programs that need not be traced again

PROGRAM = """
import json, sys
from pathlib import Path
from gradlab.experiment import loading, schema
from gradlab.running import identity, recall, single  # what a run has imported by then

traced = []
honest = identity.program
identity.program = lambda *given: traced.append(1) or honest(*given)
reads = recall.Reads()
file = Path(sys.argv[1])
with recall.watched(reads):
    exp = loading.load_anew(file)
namer = identity.Namer(exp, "each", recall.Recall(Path("memory/programs.json"), reads))
cfg = schema.read(exp.module.Config, {"w": [0.5, 1.0], "depth": 3, "gain": 1.0})
before, name = len(traced), namer(cfg, 0, "float64")
files = [file for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))]
unsure = [file for file in files if recall._may_read_unseen(file)]
print(json.dumps([len(traced) > before, name, unsure]))
"""


def asked(lab: Path, **environment: str) -> tuple[bool, str]:
    """Whether a fresh process traced the program, and the point's name that it gave."""
    folder = lab / "experiments"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "twice.py")],
        cwd=lab,
        env=os.environ
        | {"PYTHONPATH": f"{folder}:{PROJECT}", "PYTHONHASHSEED": str(os.getpid() % 1000)}
        | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    traced, found, unsure = json.loads(done.stdout)
    if unsure:
        pytest.skip(f"an installed package may read files unseen: {unsure[0]}")
    return traced, found


def test_a_program_is_traced_once_and_again_only_after_a_change(lab: Path) -> None:
    traced, first = asked(lab)
    assert traced
    assert asked(lab) == (False, first)
    edit(lab / "experiments" / "twice.py", "axes.plot", "axes.scatter")
    assert asked(lab) == (True, first)
    assert asked(lab) == (False, first)
    (lab / "experiments" / "data.txt").write_text("1.0\n2.0\n3.5\n")
    traced, other = asked(lab)
    assert traced
    assert other != first
    traced, flagged = asked(lab, JAX_THREEFRY_PARTITIONABLE="0")
    assert traced
    assert flagged != other


def test_a_program_that_asked_whether_a_file_is_there_is_traced_again_when_it_is(lab: Path) -> None:
    there = lab / "there"
    asks = f"noise + DATA + __import__('os').path.exists({str(there)!r})"
    edit(lab / "experiments" / "twice.py", "noise + DATA", asks)
    first = asked(lab)
    there.write_text("")
    traced, other = asked(lab)
    assert traced
    assert other != first[1]


@pytest.mark.parametrize("name", ["plain.py", "an.odd.one.py"])
def test_compiled_code_that_is_read_stands_for_its_source(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_text("FACTOR = 1.0")
    compiled = py_compile.compile(str(source))
    assert compiled is not None
    assert recall._is_passing(compiled)
    assert recall._source(compiled) == str(source)
    alone = str(source.with_suffix(".pyc"))  # which stands for no source
    assert not recall._is_passing(alone)


def test_a_program_that_drew_from_a_shared_generator_is_not_remembered(tmp_path: Path) -> None:
    memory = recall.Recall(tmp_path / "programs.json", recall.Reads())
    memory.program("a structure", lambda: str(random.random()))
    assert memory.reads.asked == {"random"}


@pytest.mark.parametrize("content", ["", "[]", '{"files": {}}', '{"files": 1, "programs": {}}'])
def test_a_broken_memory_is_no_memory(tmp_path: Path, content: str) -> None:
    path = tmp_path / "programs.json"
    path.write_text(content)
    memory = recall.Recall(path, recall.Reads())
    assert memory.program("a structure", lambda: "traced") == "traced"


def test_what_may_have_been_read_unseen_is_not_remembered(tmp_path: Path) -> None:
    asking = recall.Reads()
    asking.asked.add("subprocess.Popen")
    memory = recall.Recall(tmp_path / "programs.json", asking)
    assert memory.program("a structure", lambda: "traced") == "traced"
    assert not memory.path.exists()


@pytest.mark.parametrize(
    ("path", "unseen"),
    [
        ("jaxlib/_jax.so", False),
        ("jax_cuda12_plugin/_solver.so", False),
        ("jax_cuda13_plugin/cuda_plugin_extension.so", False),
        ("torch/_C.so", True),
        ("PIL/_imaging.so", False),
        ("PIL/_imagingft.so", True),
        ("torch/__init__.py", False),
    ],
)
def test_what_jax_brings_for_a_gpu_reads_nothing_unseen(path: str, unseen: bool) -> None:
    assert recall._may_read_unseen(f"/python/site-packages/{path}") == unseen


def test_reads_are_seen_while_they_are_watched_and_only_then(tmp_path: Path) -> None:
    inside, outside, listed = (tmp_path / name for name in ("inside", "outside", "listed"))
    listed.mkdir()
    for path in (inside, outside):
        path.write_text("text")
    reads = recall.Reads()
    with recall.watched(reads):
        inside.read_text()
        np.fromfile(str(inside), np.uint8)
        os.listdir(tmp_path)
        os.listdir(os.fsencode(listed))
        folder = os.open(listed, os.O_RDONLY)
        os.listdir(folder)  # which has no name
        os.close(folder)
    outside.read_text()
    assert str(inside) in reads.files
    assert str(outside) not in reads.files
    assert {str(tmp_path), str(listed)} <= reads.folders


def test_digests_tell_floats_apart_to_their_last_bit() -> None:
    tell: Callable[[float], str] = identity.digest
    assert tell(1.0) != tell(float(np.nextafter(1.0, 2.0)))
    assert tell(0.0) != tell(-0.0)


def test_a_helper_in_a_package_without_a_file_is_the_edited_one(lab: Path) -> None:
    inner = lab / "experiments" / "spaced" / "inner"
    inner.mkdir(parents=True)
    (inner / "constants.py").write_text("SHIFT = 1.0\n")
    edit(
        lab / "experiments" / "twice.py",
        "\n\n@gl.config",
        "\nfrom spaced.inner import constants\n\n@gl.config",
    )
    edit(lab / "experiments" / "twice.py", "noise + DATA", "noise + DATA + constants.SHIFT")
    before = name(lab)
    (inner / "constants.py").write_text("SHIFT = 2.0\n")
    assert name(lab) != before


def test_code_with_a_docstring_and_without_is_one(tmp_path: Path) -> None:
    plain, told = tmp_path / "plain.py", tmp_path / "told.py"
    plain.write_text("def f(x):\n    return x\n\nclass C:\n    a = 1\n")
    told.write_text(
        '"""M."""\ndef f(x):\n    """F."""\n    return x\n\nclass C:\n    """C."""\n    a = 1\n'
    )
    assert identity._code(plain) == identity._code(told)
