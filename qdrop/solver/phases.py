"""In which order a unit learns: its weights and its activations at once, or one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qdrop.config import ReconConfig
from qdrop.quantization.spec import Kind
from qdrop.solver.activations.cache import Pair


@dataclass(frozen=True)
class Phase:
    """Iterations in which the same things learn."""

    config: ReconConfig
    """How."""
    learns: tuple[Kind, ...]
    """Whose quantizers learn: weights' their rounding, and a scale if they learn it; activations' their scales."""

    def inputs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The unit's inputs, with those that count as quantized in this phase."""
        if self.config.input == "quantized":
            return list(pairs)
        return [pair if pair.weights is None else Pair(pair.full, pair.weights) for pair in pairs]


def phases(config: ReconConfig) -> list[Phase]:
    """The phases of a unit's reconstruction, in order.

    Learning the weights first is what AdaRound (Nagel et al., ICML 2020) and BRECQ (Li et al., ICLR 2021) do; QDrop
    (Wei et al., ICLR 2022) learns both at once.
    """
    if config.learn_scales == "with_rounding":
        return [Phase(config, tuple(Kind))]
    scales = replace(config, input="quantized", input_prob=None, drop_prob=1.0)
    return [Phase(config, (Kind.WEIGHT,)), Phase(scales, (Kind.ACTIVATION,))]
