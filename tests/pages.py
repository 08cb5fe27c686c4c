"""What the tests of the pages share: a claim as saved, a file of an experiment, a reader."""

import re
from html.parser import HTMLParser
from pathlib import Path

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='hacked=1'>"


def claim(
    sentence: str = "one is one", verdict: str = "holds", **more: object
) -> dict[str, object]:
    return {
        "sentence": sentence,
        "measured": 1.0,
        "expected": 1.0,
        "tolerance": {"rounding": 1e-12},
        "source": "a book",
        "relation": "=",
        "verdict": verdict,
    } | more


def write_experiment(project: Path, name: str, text: str) -> None:
    (project / "experiments").mkdir(exist_ok=True)
    (project / "experiments" / f"{name}.py").write_text(text)


class Words(HTMLParser):
    """What a reader sees: the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.text.append(data)


def words(page: str) -> str:
    reader = Words()
    reader.feed(page)
    return re.sub(r"\s+", " ", "".join(reader.text))
