"""Hostile input of every kind is refused in words: no traceback, no wait without end, no gigabytes, nothing executed.

    python -m pytest tests/test_hostile.py -m slow -s     # prints how many of each kind are

The cases are in tests/hostile/. A case counts if it is refused by an error of the package that is short and names what
it has to, or if it may be taken and is.
"""

import logging

import pytest
from hostile import settings
from hostile.case import problem

KINDS = {
    "numbers and texts as settings": settings.numbers,
    "config files": settings.texts,
    "settings from Python": settings.from_python,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_is_refused_in_words(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.CRITICAL)  # warnings of what is taken are of no interest here
    found = {case.name: problem(case) for case in KINDS[kind](tmp_path)}
    logging.disable(logging.NOTSET)
    failed = [f"{name}: {what}" for name, what in found.items() if what]
    print(f"\n{kind}: {len(found) - len(failed)} of {len(found)} answered in words")
    assert not list(tmp_path.rglob("hacked*")), "something was executed"
    assert not failed, "\n".join(failed)
