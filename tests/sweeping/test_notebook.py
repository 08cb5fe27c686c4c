"""In a kernel of Jupyter, as a reader of a notebook sees it."""

import base64
from pathlib import Path

import nbformat.v4 as notebook
from nbclient import NotebookClient

CELLS = (
    "import gradlab as gl\nrun = gl.run('twice', w=[0.1, 0.5])\nrun",
    "run.claims",
    "run.figure",
    "gl.sweep('twice', seed=range(3)).sizes['seed']",
    "gl.runs()",
    "import pathlib\n"
    "helper = pathlib.Path('experiments/helper.py')\n"
    "helper.write_text(helper.read_text().replace('FACTOR = 2.0', 'FACTOR = 3.0'))\n"
    "float((gl.run('twice', w=[0.1, 0.5]).data.twice / run.data.twice).mean())",
    "gl.run('twice', w='much')",
)


def test_a_notebook_shows_what_is_returned_and_nothing_twice(lab: Path) -> None:
    book = notebook.new_notebook(cells=[notebook.new_code_cell(cell) for cell in CELLS])
    client = NotebookClient(book, allow_errors=True, resources={"metadata": {"path": str(lab)}})
    run, claims, figure, count, runs, edited, wrong = (
        [output for output in cell.outputs if output.get("name") != "stderr"]
        for cell in client.execute().cells
    )
    assert len(run) == len(claims) == len(figure) == len(count) == len(runs) == len(edited) == 1
    assert "it is small" in run[0].data["text/html"]
    assert claims[0].data["text/html"].startswith("<table>")
    assert base64.b64decode(figure[0].data["image/png"]).startswith(b"\x89PNG")
    assert count[0].data["text/plain"] == "3"
    assert "<table" in runs[0].data["text/html"]
    assert float(edited[0].data["text/plain"]) == 1.5  # 3 over 2: the helper as it is now
    assert (wrong[0].ename, wrong[0].evalue.partition(";")[0]) == ("BadInput", "w is 'much'")
