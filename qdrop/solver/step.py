"""One iteration of reconstruction, without its optimizer, as a function of tensors alone.

Written that way the forward and the backward pass are one graph, which can be compiled as a whole: the random drop,
the quantizers and their gradients then become a few passes over memory between the convolutions
(:mod:`qdrop.solver.compiler`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, reduce
from itertools import islice
from operator import add

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from qdrop.config import ReconConfig
from qdrop.quantization.drop import Drop, scrambled_positions
from qdrop.quantization.spec import Group, Kind
from qdrop.quantization.state import quantizers
from qdrop.registry import OBJECTIVES
from qdrop.solver.objectives import Objective
from qdrop.solver.objectives.regularizer import rounding_loss


@dataclass(frozen=True)
class Inputs:
    """What changes from one iteration to the next, all on the unit's device."""

    full: tuple[Tensor, ...]
    """The unit's inputs in the full-precision network `[B, C, ...]`."""
    quantized: tuple[Tensor, ...]
    """The same in the quantized network."""
    target: tuple[Tensor, ...]
    """The unit's full-precision outputs `[B, C', ...]`."""
    seeds: Tensor
    """A seed for each mask of the drop `[S, 2]`, int32; S as :func:`masks_needed` says."""
    weight: Tensor
    """Weight of the rounding term, a scalar."""
    beta: Tensor
    """Its exponent, a scalar."""
    beside: tuple[Tensor, ...] = ()
    """What :meth:`qdrop.solver.objectives.Objective.prepare` found `[B, ...]`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, those beside last."""
        return *self.full, *self.quantized, *self.target, self.seeds, self.weight, self.beta, *self.beside

    def like(self, tensors: tuple[Tensor, ...]) -> "Inputs":
        """The inputs that :meth:`tensors` of as many gave these."""
        given, inputs, outputs = iter(tensors), len(self.full), len(self.target)
        full, quantized, target = (tuple(islice(given, count)) for count in (inputs, inputs, outputs))
        return Inputs(full, quantized, target, next(given), next(given), next(given), tuple(given))

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.seeds.device


def masks_needed(unit: nn.Module, inputs: int) -> int:
    """Masks of the drop in one iteration: one for each input of the unit, one for each activation quantizer."""
    return inputs + len(quantizers(unit, Kind.ACTIVATION))


Gradients = Callable[[Inputs], tuple[Tensor, ...]]
"""The terms of the loss, and the gradient of their sum for each learned parameter, in order: `UnitLoss` names both."""


class UnitLoss(nn.Module):
    """The losses of a unit for one batch (Wei et al., QDrop, ICLR 2022, algorithm 1).

    Args:
        unit: A calibrated unit.
        config: For the objective, the probabilities of the drop and the precision.
        learns: Whose quantizers learn.
        objective: The objective, where it has been prepared for the unit; None: a new one, as the config says.
    """

    def __init__(
        self,
        unit: nn.Module,
        config: ReconConfig,
        learns: tuple[Kind, ...] = tuple(Kind),
        objective: Objective | None = None,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.learns = learns
        keep_prob = config.drop_prob  # its published name
        self.drop = Drop(keep_prob, iter(()))
        self.input_drop = Drop(keep_prob if config.input_prob is None else config.input_prob, iter(()))
        self.reduced = config.precision == "bfloat16"
        self.objective: Objective = OBJECTIVES[config.objective]() if objective is None else objective
        self.weights = tuple(quantizers(unit, Kind.WEIGHT)) if Kind.WEIGHT in learns else ()
        self.terms = (*self.objective.terms, "rounding")

    def groups(self) -> dict[Group, list[nn.Parameter]]:
        """What reconstruction learns, by group."""
        found = [quantizer.param_groups() for quantizer in quantizers(self.unit, *self.learns)]
        return {group: [p for groups in found for p in groups.get(group, [])] for group in Group}

    def learned(self) -> dict[str, nn.Parameter]:
        """Names and parameters that reconstruction learns, group by group."""
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return {names[id(parameter)]: parameter for group in self.groups().values() for parameter in group}

    def forward(self, batch: Inputs) -> tuple[Tensor, ...]:
        """The terms of a batch, scalars: those of the objective, then the roundings' regularizer."""
        self.drop.seeds = self.input_drop.seeds = iter(batch.seeds.unbind())
        given = [self.input_drop.mix(q, f) for q, f in zip(batch.quantized, batch.full, strict=True)]
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.reduced, cache_enabled=False):
            outs = self.unit(*given)  # [B, C', ...] each
        needed = [getattr(batch, need) for need in self.objective.needs]
        errors = self.objective([out.float() for out in outs], *needed)
        return *errors, rounding_loss(self.weights, batch.weight, batch.beta)


def eager(loss: UnitLoss) -> Gradients:
    """The iteration as it is."""
    learned = tuple(loss.learned().values())
    # The same in every iteration; compiled code has them sooner than memory would.
    loss.drop.positions = loss.input_drop.positions = cache(scrambled_positions)

    def gradients(inputs: Inputs) -> tuple[Tensor, ...]:
        terms = loss(inputs)
        found = torch.autograd.grad(reduce(add, terms), learned, materialize_grads=True)
        return *(term.detach() for term in terms), *found

    return gradients


def traced(loss: UnitLoss, example: Inputs) -> tuple[fx.GraphModule, list[Tensor]]:
    """The iteration as one graph of tensor operations, forward and backward.

    Args:
        loss: The unit's losses.
        example: Inputs of the shapes it will have.

    Returns:
        The graph, a function of the unit's tensors and the inputs, and those tensors of the unit. Units of
        equal shape and settings give equal graphs.
    """
    state: dict[str, Tensor] = {**dict(loss.named_parameters()), **dict(loss.named_buffers())}
    learned = list(loss.learned())

    def gradients(values: list[Tensor], tensors_of_batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensors = dict(zip(state, values, strict=True))
        leaves = {name: tensors[name].detach().requires_grad_() for name in learned}
        terms = functional_call(loss, {**tensors, **leaves}, (example.like(tensors_of_batch),))
        found = torch.autograd.grad(reduce(add, terms), tuple(leaves.values()), materialize_grads=True)
        return *(term.detach() for term in terms), *found

    values = [value.detach() for value in state.values()]
    return make_fx(gradients)(values, example.tensors()), values
