"""Runs the notebooks of the examples: their code cells in order, in this process, on less data.

No kernel is started, so that the tests need no Jupyter.
"""

import json
import pathlib

import pytest

from tf_slipstream import _compat

NOTEBOOKS = pathlib.Path(__file__).parent.parent / "examples" / "notebooks"
# In place of the values of the cell with the tag "parameters".
SMALL = {
    "deepfm": {"EXAMPLES": 2000, "SCALE": 0.0005, "NUM_FIELDS": 5},
    "daily": {"EXAMPLES": 3000, "SCALE": 0.0005, "DAYS": 3},
}


def code_cells(name):
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_notebook_is_run():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the notebooks import Keras 3")
@pytest.mark.parametrize("name", SMALL)
def test_notebook_runs(name, capsys):
    values = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(name), start=1):
        exec(compile("".join(cell["source"]), f"{name}, code cell {number}", "exec"), values)
        if "parameters" in cell["metadata"].get("tags", []):
            assert SMALL[name].keys() <= values.keys()
            values.update(SMALL[name])
    printed = capsys.readouterr().out
    shown = "".join(
        text for cell in code_cells(name) for out in cell["outputs"] for text in out["text"]
    )
    # Other numbers, but the same lines.
    assert "AUC" in printed
    if name == "deepfm":
        assert printed.count("test AUC") == shown.count("test AUC") == 3
    else:
        assert printed.count("rows changed") == SMALL[name]["DAYS"] - 1
