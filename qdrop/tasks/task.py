"""What a run needs to know of a task: inputs to calibrate on, whether a network fits, and how good it is.

task = make_task(config)
network = task.network(model)
inputs = task.calibration(1024, seed=0)
task.check(network)
print(task.evaluate(network, device))  # {"top1": 71.06}
"""

from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from qdrop.config import Config
from qdrop.errors import QdropError
from qdrop.registry import TASKS

Figures = dict[str, float]
"""What was measured, in percent, by name; the first is the one that networks are compared by."""

Images = Tensor | list[Tensor]
"""`[N, C, H, W]`, or other inputs `[N, ...]`; where these differ in height or width, batches of them."""

WORDS = {"top1": "top-1"}
"""Names of figures in the words of messages and tables, where these differ."""


class NotFiniteError(QdropError, FloatingPointError):
    """A network whose outputs are infinite or not a number."""


class Task(Protocol):
    """Data and metric of one kind of network. Made of all settings; raises DataError if its data is not there."""

    size: int
    """How many images, or other inputs, are evaluated."""

    @staticmethod
    def settings(kind: str) -> tuple[str, ...]:
        """The settings that say where data of a type lies and how it is prepared, as `data.path`."""

    def network(self, model: nn.Module) -> nn.Module:
        """The part of a model that is quantized, or all of it.

        Raises:
            ModelError: If the model is for another task.
        """

    def calibration(self, count: int, seed: int) -> Images:
        """`count` inputs to calibrate on, on the CPU; the same seed gives the same.

        Raises:
            DataError: If there are not so many.
        """

    def check(self, model: nn.Module) -> None:
        """See that a network, on the CPU, takes the inputs of the data and answers what the data asks.

        Raises:
            DataError: If not; says how they differ.
        """

    def evaluate(self, model: nn.Module, device: torch.device, folder: Path | None = None) -> Figures:
        """How good a network is, always on the same inputs. It runs on `device`, in eval mode, without gradients.

        With a folder, what the figures were computed from may be written there.

        Raises:
            NotFiniteError: If an output is infinite or not a number.
            DataError: If no input could be read.
        """

    def illustrate(self, full: nn.Module, outcome: nn.Module, device: torch.device, folder: Path) -> None:
        """Put pictures into a folder, if there is something to see, of the network before and after quantization."""


def make_task(config: Config) -> Task:
    """The task that the data of a run is for."""
    return cast(Task, TASKS[config.data.type](config))


def in_words(figures: Figures) -> str:
    """Figures for a message, as `top-1 71.06`."""
    return ", ".join(f"{WORDS.get(name, name)} {value:.2f}" for name, value in figures.items())
