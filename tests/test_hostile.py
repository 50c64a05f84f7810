"""Hostile input of every kind is refused in words: no traceback, no wait without end, no gigabytes, nothing executed.

    python -m pytest tests/test_hostile.py -m slow -s     # prints how many of each kind are

The cases are in tests/hostile/. A case counts if it is refused by an error of the package that is short and names what
it has to, or if it may be taken and is.
"""

import pytest
from hostile import files, networks, notebook, settings
from hostile.case import problem

KINDS = {
    "numbers and texts as settings": settings.numbers,
    "config files": settings.texts,
    "settings from Python": settings.from_python,
    "weights": files.weights,
    "folders of images": files.image_folders,
    "folders of runs": files.run_folders,
    "packed files: bytes": networks.bytes_of_a_file,
    "packed files: descriptions": networks.descriptions,
    "packed files: names": networks.renamed,
    "packed files: tensors": networks.tensors,
    "networks from Python": notebook.networks,
    "images and arguments from Python": notebook.arguments,
    "where a notebook calls from": notebook.surroundings,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_in_words(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {case.name: problem(case) for case in KINDS[kind](tmp_path)}
    failed = [f"{name}: {what}" for name, what in found.items() if what]
    print(f"\n{kind}: {len(found) - len(failed)} of {len(found)} answered in words")
    assert not list(tmp_path.rglob("hacked*")), "something was executed"
    assert not failed, "\n".join(failed)
