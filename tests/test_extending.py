"""The recipes of docs/extending.md, followed literally: their code blocks, in order, in a fresh interpreter."""

import re
from pathlib import Path

import pytest
from forked import forked

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {
    title: re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE)
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Exit codes of each recipe's blocks, with its registration and without; and what was written to stderr."""
    folder, programs = tmp_path_factory.mktemp("recipes"), []
    for number, (*new, use) in enumerate(RECIPES.values()):
        names = [f"new{number}_{part}" for part in range(len(new))]
        for name, block in zip([*names, f"use{number}"], [*new, use], strict=True):
            (folder / f"{name}.py").write_text(block, encoding="utf-8")
        programs += [f"import {', '.join(names)}, use{number}", f"import use{number}"]
    codes, told = forked(programs, folder)
    return dict(zip(RECIPES, zip(codes[::2], codes[1::2], strict=True), strict=True)), told


def test_there_is_a_recipe_for_every_seam():
    assert list(RECIPES) == [
        "An observer",
        "A rounding",
        "An objective",
        "A method",
        "An operator",
        "A network",
        "A task",
    ]


@pytest.mark.parametrize("title", RECIPES)
def test_the_recipe_works_and_is_needed(title, followed):
    (code, without), told = followed[0][title], followed[1]
    assert code == 0, told
    assert without != 0, "without the registration it works as well: this recipe shows nothing"
