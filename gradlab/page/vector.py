"""A vector figure small enough to stand in a page."""

from __future__ import annotations

import re

_PREAMBLE = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_COORDINATES = re.compile(r'\b(d|x|y|points)="([^"]*)"')
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")
_ID = re.compile(r'\bid="([^"]*)"\s*')
_USED = re.compile(r'(?:url\(|href=")#([^)"]*)')
_MARKS = re.compile(r'(?:<use [^>]*?\bstyle="(?P<style>[^"]*)"\s*/>\s*)+')


def shrunk(svg: str) -> str:
    """The same drawing: coordinates to 0.01 point, short names, no style said twice in a row."""
    svg = re.sub(r"\s+", " ", _PREAMBLE.sub("", svg))
    svg = _COORDINATES.sub(lambda found: f'{found[1]}="{_NUMBER.sub(_short, found[2])}"', svg)
    svg = _MARKS.sub(_together, _renamed(svg))
    return re.sub(r"> <", "><", svg).strip()


def _short(found: re.Match[str]) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _renamed(svg: str) -> str:
    names = {name: f"n{i}" for i, name in enumerate(dict.fromkeys(_USED.findall(svg)))}
    svg = _ID.sub(lambda found: f'id="{names[found[1]]}" ' if found[1] in names else "", svg)
    return _USED.sub(lambda found: found[0].replace(found[1], names[found[1]]), svg)


def _together(found: re.Match[str]) -> str:
    """A run of marks of one style, with the style said once."""
    said = f' style="{found["style"]}"'
    if found[0].count(said) != found[0].count("<use ") or found[0].count("<use ") == 1:
        return found[0]
    return f"<g{said}>{found[0].replace(said, '')}</g>"


def uri(svg: str) -> str:
    """The drawing as the address of an image, fit for an attribute in double quotes.

    As an image its names and styles stay its own, and nothing in it can run or be fetched.
    """
    for character in "%#&'":
        svg = svg.replace(character, f"%{ord(character):02X}")
    return "data:image/svg+xml," + svg.replace('"', "'")
