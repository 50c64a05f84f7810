"""What a run needs to know of a task: inputs to calibrate on, whether a network fits, and how good it is.

task = make_task(config)
inputs = task.calibration(1024, seed=0)
task.check(model)
print(task.evaluate(model, device))  # {"top1": 71.06}
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from qdrop.config import Config
from qdrop.registry import TASKS

Figures = dict[str, float]
"""What was measured, in percent, by name; the first is the one that networks are compared by."""

WORDS = {"top1": "top-1"}
"""Names of figures in the words of messages and tables, where these differ."""


class Task(Protocol):
    """Data and metric of one kind of network. Made of all settings; raises DataError if its data is not there."""

    size: int
    """How many images, or other inputs, are evaluated."""

    def calibration(self, count: int, seed: int) -> Tensor:
        """`count` inputs to calibrate on `[count, ...]`, on the CPU; the same seed gives the same.

        Raises:
            DataError: If there are not so many.
        """

    def check(self, model: nn.Module) -> None:
        """See that a network, on the CPU, takes the inputs of the data and answers what the data asks.

        Raises:
            DataError: If not; says how they differ.
        """

    def evaluate(self, model: nn.Module, device: torch.device) -> Figures:
        """How good a network is, always on the same inputs. It runs on `device`, in eval mode, without gradients.

        Raises:
            NotFiniteError: If an output is infinite or not a number.
            DataError: If no input could be read.
        """


def make_task(config: Config) -> Task:
    """The task that the data of a run is for."""
    return cast(Task, TASKS[config.data.type](config))


def in_words(figures: Figures) -> str:
    """Figures for a message, as `top-1 71.06`."""
    return ", ".join(f"{WORDS.get(name, name)} {value:.2f}" for name, value in figures.items())
