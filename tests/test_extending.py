"""The recipes of docs/extending.md, followed literally: their code blocks, in order, in a fresh interpreter."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {
    title: re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}


def follow(tmp_path, *blocks):
    """Runs the blocks, each a file of its own that is imported by one program."""
    names = [f"block{number}" for number in range(len(blocks))]
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(block, encoding="utf-8")
    program = f"import {', '.join(names)}"
    return subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)


def test_there_is_a_recipe_for_every_seam():
    assert list(RECIPES) == ["An observer", "A rounding", "An objective", "A method", "An operator", "A network"]


@pytest.mark.parametrize("title", RECIPES)
def test_the_recipe_works_and_is_needed(title, tmp_path):
    new, use = RECIPES[title]
    followed = follow(tmp_path, new, use)
    assert followed.returncode == 0, followed.stderr
    assert follow(tmp_path, use).returncode != 0, "without the registration it works as well: this recipe shows nothing"
