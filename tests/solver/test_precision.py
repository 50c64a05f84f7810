import subprocess
import sys

import pytest
import torch

from qdrop.config import ReconConfig
from qdrop.solver.precision import layer_arithmetic


@pytest.mark.parametrize("precision", ["tf32", "float32", None])
def test_holds_inside_and_is_restored_also_after_an_exception(precision):
    recon = None if precision is None else ReconConfig(precision=precision)
    allowed = precision == "tf32"

    def state():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.enabled, cudnn.deterministic

    before = state()
    with pytest.raises(KeyError), layer_arithmetic(recon):
        assert state() == (allowed, allowed, *before[2:])
        raise KeyError
    assert state() == before


NEWER = """
import torch
from qdrop.config import ReconConfig
from qdrop.solver.precision import layer_arithmetic
backends = torch.backends
{setting}
def state():
    return [part.fp32_precision for part in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)]
before = state()
with layer_arithmetic(ReconConfig(precision="{precision}")):
    assert state() == ["{inside}"] * 3, state()
assert state() == before, (before, state())
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older interface only")
@pytest.mark.parametrize(("precision", "inside"), [("tf32", "tf32"), ("float32", "ieee")])
@pytest.mark.parametrize(
    "setting",
    [
        "backends.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'ieee'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_a_caller_may_have_used_the_newer_interface(setting, precision, inside):
    """In a process of its own: torch keeps what was used."""
    code = NEWER.format(setting=setting, precision=precision, inside=inside)
    subprocess.run([sys.executable, "-c", code], check=True)
