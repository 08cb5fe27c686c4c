"""What a sweep is before anything is computed: chunks, structures and names, without a run."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradlab as gl
from gradlab.experiment import schema
from gradlab.running.provenance import Asked
from gradlab.sweeping import points
from gradlab.sweeping.points import Axis, Point, Sweep


@schema.config
class Config:
    """A structure, a traced number, a traced list."""

    depth: int
    sigma_w: float
    w: gl.Floats


def point(
    depth: int = 3, sigma_w: float = 1.0, w: tuple[float, ...] = (0.5,), seed: int = 0
) -> Point:
    cfg: Any = schema.read(Config, {"depth": depth, "sigma_w": sigma_w, "w": list(w)})
    values = {"depth": depth, "sigma_w": sigma_w}
    overrides = (f"depth={depth}", f"sigma_w={sigma_w}")
    return Point(cfg, seed, "float64", str((cfg, seed)), (0,), values, overrides)


def test_a_structure_is_what_is_compiled_and_no_number_that_is_traced() -> None:
    one = points.structure(point())
    assert points.structure(point(sigma_w=2.0, w=(0.7,), seed=5)) == one
    assert points.structure(point(depth=4)) != one
    assert points.structure(point(w=(0.5, 0.6))) != one
    assert points.structure(dataclasses.replace(point(), precision="float32")) != one


@given(
    depths=st.lists(st.integers(1, 3), min_size=1, max_size=130),
    size=st.one_of(st.none(), st.integers(1, 40)),
)
def test_chunks_hold_every_point_once_and_one_structure_each(
    depths: list[int], size: int | None
) -> None:
    found = [point(depth, sigma_w=float(number)) for number, depth in enumerate(depths)]
    chunks = points.chunks(found, size)
    assert sorted(p.cfg.sigma_w for chunk in chunks for p in chunk) == list(range(len(depths)))
    assert all(len({points.structure(p) for p in chunk}) == 1 for chunk in chunks)
    most = size or -(-len(depths) // points.NUM_CHUNKS)
    assert max(map(len, chunks)) <= most
    # As few as that allows, and in the order in which the sweep has them.
    assert len(chunks) == sum(-(-depths.count(depth) // most) for depth in set(depths))
    for chunk in chunks:
        assert [p.cfg.sigma_w for p in chunk] == sorted(p.cfg.sigma_w for p in chunk)


@pytest.mark.parametrize(
    ("method", "platform", "meant"),
    [
        *(("auto", "cpu", "each"), ("auto", "gpu", "vmap"), ("auto", "tpu", "vmap")),
        *(("vmap", "cpu", "vmap"), ("each", "gpu", "each")),
    ],
)
def test_auto_is_chosen_by_the_kind_of_device(method: str, platform: str, meant: str) -> None:
    assert points.resolved(method, platform) == meant


def test_a_sweep_tells_what_its_points_share_and_how_one_is_run_alone() -> None:
    asked = Asked("python experiments/e.py --multirun depth=3,4 results=here sweep.batch=2")
    fixed = ("w=[0.5]", "results=here", "sweep.batch=2", "sweep.fail_fast=true")
    sweep = Sweep((Axis({"depth": [3, 4]}),), [point(3), point(4)], fixed, asked)
    assert sweep.shared() == {"sigma_w": 1.0, "w": [0.5]}
    # Where files go is part of the command, how a sweep is made is not.
    assert sweep.alone(sweep.points[1]) == (
        "python experiments/e.py 'w=[0.5]' results=here depth=4 sigma_w=1.0"
    )
    assert sweep.points[0].plain() == {
        "key": point(3).key,
        "seed": 0,
        "precision": "float64",
        "config": {"depth": 3, "sigma_w": 1.0, "w": [0.5]},
    }
