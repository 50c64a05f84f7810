"""Packages that only a part of qdrop needs: what is said where one is missing, and that setup.py lists them."""

import ast
import sys
from pathlib import Path

import pytest

from qdrop.config import DataConfig
from qdrop.extras import MissingPackageError, extra
from qdrop.models import build_model
from qdrop.models.preparation import preparation
from qdrop.tasks.classification.images import calibration_images

ROOT = Path(__file__).parents[1]


def calls(name):
    """The first argument of every call of a function in the package."""
    for file in (ROOT / "qdrop").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == name:
                yield ast.literal_eval(node.args[0])


def listed():
    """The extras of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign))


def test_every_extra_is_listed_and_used():
    assert set(calls("extra")) == set(listed())


@pytest.mark.parametrize(
    ("module", "work", "told"),
    [
        ("timm", lambda: build_model("timm:resnet18"), "networks of timm need the package timm"),
        ("timm", lambda: preparation("timm:resnet18"), "networks of timm need the package timm"),
        ("sklearn.datasets", lambda: calibration_images(DataConfig("digits"), 4, 0), "need the package sklearn"),
    ],
)
def test_a_missing_package_is_named(module, work, told, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf"{told}.*, which is not installed: pip install 'qdrop\[\w+\]'"):
        work()


def test_a_module_of_qdrop_that_is_missing_is_no_package():
    with pytest.raises(ModuleNotFoundError, match=r"qdrop\.nothing"), extra("timm", "networks"):
        import qdrop.nothing  # noqa: F401
