"""Figures from labelled arrays: nothing measured is left out, and what lacks a label is told."""

import numpy as np
import pytest

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
