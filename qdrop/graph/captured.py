"""The module that a captured network is: one that can be copied and pickled, and stays in its type once quantized."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, fx

from qdrop.quantization.fake_quant import FakeQuantize, check_type


class CapturedGraph(fx.GraphModule):
    """A captured network, with or without quantizers.

    A quantized one is pickled as what `qdrop.save` writes, since torch would forget its plan. So
    what comes out of a pickle is what `qdrop.load` gives, and needs no class of the user's.
    """

    def __reduce__(self) -> Any:
        """What :mod:`pickle` keeps.

        Raises:
            CheckpointError: If it is quantized and uses what a file may not hold; names it.
        """
        if "plan" not in self.meta:
            return super().__reduce__()
        from qdrop.checkpoint import describe  # which itself needs this module

        checkpoint = describe(self, self.meta.get("config"), self.meta.get("metrics"))
        return _unpickled, (checkpoint, self._quantizers()[0].scale.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As for any module; what would change the type of a scale is refused before anything is changed."""
        for quantizer in self._quantizers()[:1]:
            check_type(quantizer.scale, fn)
        return super()._apply(fn, recurse)

    def _quantizers(self) -> list[FakeQuantize]:
        return [module for module in self.modules() if isinstance(module, FakeQuantize)]


def _unpickled(checkpoint: Any, device: torch.device) -> fx.GraphModule:
    """The network of a :class:`qdrop.checkpoint.packed.Checkpoint`."""
    network: fx.GraphModule = checkpoint.build().to(device)
    return network
