"""Names at the ends of lines: none over another, in order, near their lines."""

import numpy as np
import pytest
import xarray as xr

from gradlab.experiment import figures


@pytest.mark.parametrize("at", [[0.5] * 6, [0.1, 0.9], [0.0, 0.01, 0.5, 0.52, 0.53, 1.0]])
def test_names_keep_their_distance_and_their_order(at: list[float]) -> None:
    _, (axes,) = figures.panels()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    names = [f"line {i}" for i in range(len(at))]
    figures.ends(axes, 1.0, xr.DataArray(at, {"name": names}, "name"), gap=0.06)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}

    assert list(heights) == names
    assert np.diff(list(heights.values())).min() >= 0.06 - 1e-12


def test_names_with_room_stand_at_their_lines() -> None:
    _, (axes,) = figures.panels()
    axes.set(xlim=(0, 1), ylim=(-2, 2))
    figures.ends(axes, 1.0, xr.DataArray([1.0, -1.0], {"name": ["up", "down"]}, "name"))

    assert {text.get_text(): text.get_position()[1] for text in axes.texts} == pytest.approx(
        {"down": 0.25, "up": 0.75}
    )
