"""What a unit's outputs are compared by while it learns. One file for each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from qdrop.solver.activations.cache import Value
    from qdrop.solver.objectives.surroundings import Surroundings


class Objective(ABC):
    """A distance between what a quantized unit gives and what it should, in one term or more.

    The regularizer of the rounding is none of them: it is the rounding's.
    """

    needs: ClassVar[tuple[str, ...]] = ("target",)
    """What it is given beside the outputs: names of fields of :class:`qdrop.solver.step.Inputs`."""
    terms: ClassVar[tuple[str, ...]]
    """Names of its terms."""

    def prepare(self, around: "Surroundings") -> "Sequence[Value]":
        """What it needs of a unit's surroundings, found before the unit learns; by default nothing.

        Args:
            around: The unit in its network.

        Returns:
            Values for all calibration images, `[N, ...]` each; a batch of them is `beside` in `needs`.
        """
        return ()

    @abstractmethod
    def __call__(self, outs: Sequence[Tensor], *needed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Its terms, scalars; their sum is what is minimised.

        Args:
            outs: The quantized unit's outputs `[N, C, ...]`, float32.
            needed: What it needs, in order.
        """
