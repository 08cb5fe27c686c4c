"""The panels of a vector figure and what their axes say, so that a pointer can read values off it.

Read from the drawing itself, as matplotlib writes it: a tick is a mark at a place, and its label a
comment beside the outlines of its letters. An axis of words says the nearest one; one whose numbers
lie on no line and on no logarithm is not read.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

_PANEL = re.compile(r'<g id="axes_\d+">')
_FRAME = re.compile(r'<g id="patch_\d+">\s*<path d="([^"]*)"')
_AXIS = re.compile(r'<g id="matplotlib\.axis_\d+"/?>')
_TICK = re.compile(r'<g id="[xy]tick_\d+">')
_MARK = re.compile(r'<use [^>]*?\bx="([-\d.e]+)" y="([-\d.e]+)"')
_LABEL = re.compile(r"<!-- (.*?) -->")
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
_POWER = re.compile(r"(?:(-?\d+\.?\d*)\\times)?10\^\{(-?\d+)\}")
_BAR = 0.25  # a colour bar is at most so wide for its height, and has no ticks along it
_OFF = 0.5  # points by which a tick may be off the line through the ends


Tick = tuple[float, str | None]


class Axis(NamedTuple):
    """Two values and their places in the drawing; the values are logarithms where `log`."""

    places: tuple[float, float]
    values: tuple[float, float]
    log: bool


class Words(NamedTuple):
    """The places of an axis that says words, and the words."""

    places: tuple[float, ...]
    said: tuple[str, ...]


def panels(svg: str) -> list[list[Any]]:
    """The panels whose axes can be read, as plain JSON: frame, x axis, y axis and its name."""
    found = []
    rows: dict[tuple[float, ...], Axis | Words | None] = {}
    for box, across, up in _panels(svg):
        x, y, heights = _axis(across), _axis(up), tuple(place for place, _ in up)
        rows.setdefault(heights, y)
        # A panel that shares its y axis has the ticks of its row, without labels.
        silent = all(label is None for _, label in up)
        left, right, top, bottom = box
        is_bar = not across and right - left < _BAR * (bottom - top)
        found.append((box, x, rows[heights] if silent else y, "colour" if is_bar else "y"))
    return [
        [[round(part, 2) for part in box], *(_plain(axis) for axis in (x, y)), name]
        for box, x, y, name in found
        if x or y
    ]


def _plain(axis: Axis | Words | None) -> list[Any] | None:
    if axis is None:
        return None
    if isinstance(axis, Words):
        return [[round(place, 2) for place in axis.places], list(axis.said)]
    places, values = ([float(f"{part:.6g}") for part in pair] for pair in axis[:2])
    return [*places, *values, int(axis.log)]


def _panels(svg: str) -> Iterator[tuple[tuple[float, ...], list[Tick], list[Tick]]]:
    """The frame of each panel (left, right, top, bottom), and the ticks of its two axes."""
    for part in _PANEL.split(svg)[1:]:
        frame = _FRAME.search(part)
        axes = _AXIS.split(part)[1:]
        if frame is None or len(axes) < 2:
            continue
        numbers = np.array(re.findall(r"-?[\d.]+", frame[1]), float).reshape(-1, 2)
        (left, top), (right, bottom) = numbers.min(0), numbers.max(0)
        frame_of = float(left), float(right), float(top), float(bottom)
        yield frame_of, _ticks(axes[0], 1), _ticks(axes[1], 2)


def _ticks(text: str, side: int) -> list[Tick]:
    """The ticks of an axis: where along it, 1 for x and 2 for y, and the label if there is one."""
    ticks = []
    for tick in map(_group, _TICK.split(text)[1:]):
        mark, label = _MARK.search(tick), _LABEL.search(tick)
        if mark is not None:
            ticks.append((float(mark[side]), label[1] if label else None))
    return ticks


def _axis(ticks: list[Tick]) -> Axis | Words | None:
    """The axis that labelled ticks say, None where they say none."""
    labels = [(place, label) for place, label in ticks if label is not None]
    said = [(place, number(label)) for place, label in labels]
    if len({place for place, _ in said}) < 2:
        return None
    if any(value is None for _, value in said):
        words = Words(*zip(*labels, strict=True))
        return None if any(re.search(r"[$\\]", word) for word in words.said) else words
    places, values = np.array(said, float).T
    powers = any("10^" in (label or "") for _, label in ticks)
    for log in (powers, not powers):
        if log and not (values > 0).all():
            continue
        axis = _through(places, np.log10(values) if log else values, log)
        if axis is not None:
            return axis
    return None


def _group(text: str) -> str:
    """What is in a group of which the text begins inside."""
    depth = 1
    for found in re.finditer(r"<g\b|</g>", text):
        depth += 1 if found[0] == "<g" else -1
        if depth == 0:
            return text[: found.start()]
    return text


def _through(places: Any, values: Any, log: bool) -> Axis | None:
    """The line through the first and the last tick, where all the others are on it."""
    ends = [int(places.argmin()), int(places.argmax())]
    (a, b), (u, v) = places[ends], values[ends]
    if u == v or np.abs(a + (values - u) / (v - u) * (b - a) - places).max() > _OFF:
        return None
    return Axis((float(a), float(b)), (float(u), float(v)), log)


def number(label: str) -> float | None:
    """The number that the label of a tick says, None where it says another thing."""
    text = re.sub(r"\$|\\mathdefault|\s", "", label).replace("\N{MINUS SIGN}", "-")
    text = text.removeprefix("{").removesuffix("}") if text.startswith("{") else text
    if power := _POWER.fullmatch(text):
        return float(power[1] or 1) * 10.0 ** int(power[2])
    if len(text) == 1 and text.isnumeric():
        return unicodedata.numeric(text)
    if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)):
        return value
    return None
