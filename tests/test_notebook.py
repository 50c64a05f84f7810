"""The notebook runs top to bottom and says what it claims."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


def test_quickstart_notebook():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    text = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    top1 = {name: float(value) for name, value in re.findall(r"^([\w -]+): ([\d.]+)%", text, re.MULTILINE)}
    assert top1["nothing"] == top1["full precision"]
    assert top1["QDrop"] > top1["round-to-nearest"] + 5
    assert "output_quantizer" in text
