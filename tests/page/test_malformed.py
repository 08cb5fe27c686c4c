"""Whatever stands in the files of a run, the page is made and its card says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import xarray as xr
from hypothesis import strategies as st

from gradlab.experiment import dataset, fileset
from gradlab.page import build, gallery
from tests.pages import claim, words, write_experiment

SVG = '<svg viewBox="0 0 9 4" xmlns="http://www.w3.org/2000/svg"><path d="M 0 0"/></svg>'
Spoil = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with one experiment, run as written and swept, and both records of studies."""
    project = tmp_path_factory.mktemp("whole")
    write_experiment(project, "plain", '"""Is one one?"""\n')
    for folder, record in (("plain", {}), ("plain/w", {"sweep": {"w": [1]}, "num_points": 1})):
        run = project / "results" / folder
        run.mkdir(parents=True)
        dataset.write(run / "data.nc", xr.Dataset({"a": ("x", [1.0, 2.0])}))
        headline = {"name": "a", "value": 1.0, "unit": "", "law": 1.0, "low": 0.5, "high": 2.0}
        text = json.dumps({"claims": [claim()], "headline": [headline]})
        (run / "claims.json").write_text(text)
        (run / "figure.svg").write_text(SVG)
        (run / "caption.md").write_text("A caption.")
        fileset.close(run, {"command": "python experiments/plain.py", "failures": []} | record)
    (project / "results" / "seeds.json").write_text('{"experiments": {}}')
    return project


# ---- what may be wrong with a file

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["inf", "nan", "holds", "1e999", "</script>", "\u202e", "{{ 7 }}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["point", "w", "", "value", "error"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def put(content: Any, path: list[int], odd: Any) -> Any:
    """A JSON value with another in the place of one of its parts, or without that part."""
    if not path or not isinstance(content, dict | list) or not content:
        return None if odd is ... else odd
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[path[0] % len(keys)]
    changed = content.copy()
    if odd is ... and len(path) == 1:
        del changed[key]
    else:
        changed[key] = put(content[key], path[1:], odd)
    return changed


def odd_part(path: list[int], odd: Any) -> Spoil:
    return lambda old: json.dumps(put(json.loads(old), path, odd)).encode()


PART = st.builds(odd_part, st.lists(st.integers(0, 9), max_size=4), JSON | st.just(...))
CUT = st.integers(0, 40).map(lambda num: lambda old: old[: num * len(old) // 40])
OTHER = st.binary(max_size=40).map(lambda odd: lambda _: odd)
FLIPPED = st.tuples(st.integers(0, 10**6), st.integers(1, 255)).map(
    lambda at: (
        lambda old: bytes(
            byte ^ (at[1] if i == at[0] % len(old) else 0) for i, byte in enumerate(old)
        )
    )
)
ENCODED = st.sampled_from(["utf-16", "utf-32", "latin-1", "cp037"]).map(
    lambda name: lambda old: old.decode("utf-8", "replace").encode(name, "replace")
)
LARGE = st.sampled_from([b"[" * 3000, b"9" * 5000, b"\x00" * 300, b'{"a":' * 3000])
BYTES = CUT | OTHER | FLIPPED | ENCODED | LARGE.map(lambda odd: lambda _: odd)
SPOILS = {
    "claims.json": PART | BYTES,
    "run.json": PART | BYTES,
    "data.nc": BYTES,
    "figure.svg": BYTES,
    "caption.md": BYTES,
    "seeds.json": PART | BYTES,
    "power.json": PART | BYTES,
}


# h5netcdf's finaliser complains of the few broken files that h5py opens and it does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=100, deadline=None)
def test_no_file_of_results_ends_the_page(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(SPOILS)))
    study = name in ("seeds.json", "power.json")
    place = "." if study else data.draw(st.sampled_from(["plain", "plain/w"]))
    project = tmp_path_factory.mktemp("spoilt")
    shutil.copytree(whole, project, dirs_exist_ok=True)
    file = project / "results" / place / name
    before = file.read_bytes() if file.is_file() else b'{"experiments": {}}'
    after = data.draw(SPOILS[name])(before)
    file.write_bytes(after)
    try:
        cards = gallery.cards(project, project / "results")
        page = build.index(cards)
        build.lesson_page(cards)
    finally:
        shutil.rmtree(project)

    assert '<article class="card" id="plain">' in page
    # A caption is told of where it cannot be read, and a study only where its entry is there.
    if after != before and name not in ("caption.md", "seeds.json", "power.json"):
        assert "These results are not whole" in words(page)
