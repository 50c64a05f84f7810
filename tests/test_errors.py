"""The base of the errors, and what commands make of them."""

import importlib
import pkgutil

import pytest
import torch

import qdrop
from qdrop.commands.command import exit_status
from qdrop.errors import QdropError, first_line
from qdrop.solver.calibrate import CalibrationError, calibrate
from qdrop.tasks.images import UnreadableImageError


def classes():
    """Every error class of the package, but the base and one that never leaves the reading of images."""
    pytest.importorskip("onnx")
    names = [module.name for module in pkgutil.walk_packages(qdrop.__path__, "qdrop.") if "__main__" not in module.name]
    values = [value for name in names for value in vars(importlib.import_module(name)).values()]
    errors = [value for value in values if isinstance(value, type) and issubclass(value, Exception)]
    ours = {error for error in errors if error.__module__.startswith("qdrop")}
    return ours - {QdropError, UnreadableImageError}


def raising(error):
    def work():
        raise error

    return work


def test_every_error_of_the_package_has_the_base_and_a_built_in_class():
    assert len(classes()) >= 15
    for error in classes():
        assert issubclass(error, QdropError) and issubclass(
            error, (ValueError, RuntimeError, FloatingPointError, ImportError)
        ), error


@pytest.mark.parametrize(
    "error",
    [
        QdropError("expected 3, got 4"),
        OSError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes\nframe #0: c10"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_user_can_put_right_is_one_line(error, caplog):
    assert exit_status(raising(error)) == 1
    (line,) = caplog.text.splitlines()
    assert "error: " in line and first_line(error) in line


def test_an_interruption_is_one_line(caplog):
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert caplog.text.rstrip().endswith("interrupted")


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("a mistake of ours"), KeyError("x")])
def test_a_mistake_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_status(raising(error))


@pytest.mark.parametrize(
    ("images", "reason"), [(torch.empty(0, 3), "no calibration images"), (torch.full((2, 3), torch.inf), "not finite")]
)
def test_images_that_cannot_be_calibrated_on(images, reason):
    with pytest.raises(CalibrationError, match=reason) as caught:
        calibrate(torch.fx.symbolic_trace(torch.nn.ReLU()), {"input": images}, 2, torch.device("cpu"))
    assert isinstance(caught.value, ValueError)


def test_first_line():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
