from itertools import product

import pytest
import torch
from forked import forked

from qdrop.runtime.precision import layer_arithmetic


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
from qdrop.runtime.precision import layer_arithmetic
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
def test_a_caller_may_have_used_the_newer_interface():
    """Each in a process of its own: torch keeps what was used."""
    settings = (
        "backends.fp32_precision = 'tf32'",
        "backends.fp32_precision = 'ieee'",
        "backends.cuda.matmul.fp32_precision = 'tf32'",
        "backends.cudnn.conv.fp32_precision = 'ieee'",
    )
    cases = list(product(settings, ((True, "tf32"), (False, "ieee"))))
    codes, told = forked([NEWER.format(setting=s, tf32=tf32, inside=inside) for s, (tf32, inside) in cases])
    assert [case for case, code in zip(cases, codes, strict=True) if code] == [], told
