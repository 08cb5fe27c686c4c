"""The values under a pointer: the axes of a drawing are read back as they were drawn."""

import numpy as np
import pytest

from gradlab.experiment import figures
from gradlab.page import panels


def drawn() -> str:
    """Linear and log axes, one that is shared, one of words, and ticks on neither scale."""
    fig, (one, two, three, four) = figures.panels(1, 4)
    one.plot([0.5, 2.5], [-3.0, 7.0])
    one.set(xlim=(0.5, 2.5), ylim=(-3, 7), xlabel="a", ylabel="b")
    two.plot([1, 1000], [1e-12, 1e4])
    two.set(xscale="log", yscale="log", xlim=(1, 1000), ylim=(1e-12, 1e4), xlabel="a", ylabel="b")
    three.plot([-1, 1], [0, 1])
    three.set(
        xlim=(-1, 1), ylim=(-3, 7), xlabel="a", ylabel="c", yticks=[-2, 0, 2, 4, 6], yticklabels=[]
    )
    four.plot([0, 1], [0, 1])
    four.set(xticks=[0, 1], xticklabels=["tanh", "relu"], yticks=[0.1, 0.2, 0.9])
    four.set(yticklabels=["1", "2", "3"], xlabel="a", ylabel="b")
    return figures.draw(lambda _: fig, None)["svg"].decode()


def value(axis: list[float], place: float) -> float:
    """The value at a place, as the page computes it."""
    start, end, first, last, log = axis
    at = first + (place - start) / (end - start) * (last - first)
    return 10**at if log else at


def test_the_ends_of_every_panel_have_the_values_that_they_were_drawn_with() -> None:
    one, two, three, _ = panels.panels(drawn())
    limits = [((0.5, 2.5), (-3, 7)), ((1, 1000), (1e-12, 1e4)), ((-1, 1), (-3, 7))]
    for ((left, right, top, bottom), x, y, name), (of_x, of_y) in zip(
        (one, two, three), limits, strict=True
    ):
        assert name == "y"
        # Places are written to 0.01 point of some hundred: 1e-4 of the axis, 16 decades at most.
        found = [value(x, left), value(x, right), value(y, bottom), value(y, top)]
        wanted = np.array([*of_x, *of_y])
        spans = np.repeat([np.ptp(of_x), np.ptp(of_y)], 2)
        if x[-1]:
            np.testing.assert_allclose(np.log10(found), np.log10(wanted), atol=16e-3)
        else:
            np.testing.assert_allclose(found, wanted, atol=1e-3 * spans.max())


def test_an_axis_of_words_says_them() -> None:
    *_, ((left, right, _, _), words, numbers, _) = panels.panels(drawn())
    assert words[1] == ["tanh", "relu"]
    # Inside the frame by matplotlib's margin, a twentieth of what is drawn.
    np.testing.assert_allclose(
        words[0], np.interp([0.05, 1.05], [0, 1.1], [left, right]), atol=0.02
    )
    assert numbers is None  # its ticks are on neither scale


def shaded(_: object) -> figures.Figure:
    fig, (axes,) = figures.panels()
    values = axes.pcolormesh([0.0, 1.0], [0.0, 1.0], [[1.0, 2.0], [2.0, 3.0]], shading="nearest")
    fig.colorbar(values, ax=axes)
    axes.set(xlabel="a", ylabel="b")
    return fig


def test_a_bar_is_read_as_colour() -> None:
    (_, _, _, of_map), bar = panels.panels(figures.draw(shaded, None)["svg"].decode())
    (_, _, top, bottom), across, up, name = bar
    assert of_map == "y"
    assert (across, name) == (None, "colour")
    np.testing.assert_allclose([value(up, bottom), value(up, top)], [1, 3], atol=2e-3)


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("−2.50", -2.5),
        (r"$\mathdefault{10^{-3}}$", 1e-3),
        (r"$\mathdefault{2\times10^{-1}}$", 0.2),
        ("1e−5", 1e-5),
        ("¼", 0.25),
        ("tanh", None),
        ("1e999", None),
        ("", None),
    ],
)
def test_the_label_of_a_tick_is_a_number_or_none(label: str, wanted: float | None) -> None:
    assert panels.number(label) == wanted


@pytest.mark.parametrize("text", ["", "<svg/>", '<g id="axes_1">', '<g id="axes_1"><g id="x">'])
def test_what_is_no_figure_has_no_panels(text: str) -> None:
    assert panels.panels(text) == []
