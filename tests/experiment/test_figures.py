"""Figures from labelled arrays: nothing measured is left out, and what lacks a label is told."""

import numpy as np
import pytest
import xarray as xr

import gradlab as gl
from gradlab.experiment import figures


def panel(**labels: str) -> gl.Figure:
    drawn, (axes,) = gl.figures.panels()
    axes.plot([0, 1], [0, 1])
    axes.set(**labels)
    return drawn


def test_an_axis_without_a_label_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="panel 1 of the figure has no label on its y axis"):
        figures.draw(lambda _: panel(xlabel="layer"), None)


def test_a_figure_with_labels_is_drawn_without_a_word_and_carries_its_caption() -> None:
    drawn = figures.draw(lambda _: panel(xlabel="layer", ylabel="decades"), None, "Said in words.")

    assert b"Said in words." in drawn["svg"]
    assert b"Said in words." in drawn["png"]


def test_a_figure_has_the_same_bytes_twice_in_every_format() -> None:
    labels = {"xlabel": "layer", "ylabel": "decades"}
    drawn, again = (figures.draw(lambda _: panel(**labels), None) for _ in range(2))

    assert drawn.keys() == {"png", "pdf", "svg"}
    assert again == drawn


def test_what_is_no_figure_is_refused_in_a_sentence() -> None:
    with pytest.raises(gl.BadInput, match="figure returns NoneType"):
        figures.draw(lambda _: None, None)  # type: ignore[arg-type,return-value]


def test_what_is_not_finite_stands_at_the_rim() -> None:
    _, (axes,) = gl.figures.panels()
    y = np.array([1.0, np.inf, -np.inf, np.nan, 2.0])
    gl.figures.measured(axes, np.arange(5), y, {"color": "k", "marker": "o"})
    inside, *rims = axes.lines

    assert np.isfinite(inside.get_ydata()).tolist() == [True, False, False, False, True]
    places = {str(rim.get_marker()): np.asarray(rim.get_xdata()).tolist() for rim in rims}
    assert places == {"^": [1], "v": [2], "x": [3]}


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
