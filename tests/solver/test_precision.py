import subprocess
import sys

import pytest
import torch

from qdrop.solver.precision import layer_arithmetic


@pytest.mark.parametrize("allowed", [True, False])
def test_holds_inside_and_is_restored_also_after_an_exception(allowed):
    def state():
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.enabled, cudnn.deterministic

    before = state()
    with pytest.raises(KeyError), layer_arithmetic(tf32=allowed):
        assert state() == (allowed, allowed, *before[2:])
        raise KeyError
    assert state() == before


NEWER = """
import torch
from qdrop.solver.precision import layer_arithmetic
backends = torch.backends
{setting}
def state():
    return [part.fp32_precision for part in (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)]
before = state()
with layer_arithmetic(tf32={tf32}):
    assert state() == ["{inside}"] * 3, state()
assert state() == before, (before, state())
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has the older interface only")
@pytest.mark.parametrize(("tf32", "inside"), [(True, "tf32"), (False, "ieee")])
@pytest.mark.parametrize(
    "setting",
    [
        "backends.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'ieee'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
    ],
)
def test_a_caller_may_have_used_the_newer_interface(setting, tf32, inside):
    """In a process of its own: torch keeps what was used."""
    code = NEWER.format(setting=setting, tf32=tf32, inside=inside)
    subprocess.run([sys.executable, "-c", code], check=True)
