"""One iteration of reconstruction, without its optimizer, as a function of tensors alone.

Written that way the forward and the backward pass are one graph, which can be compiled as a whole: the random drop,
the quantizers and their gradients then become a few passes over memory between the convolutions. Units of equal
shape share the compiled code.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from qdrop.config import ReconConfig
from qdrop.errors import first_line
from qdrop.quantization.drop import Drop, scrambled_positions
from qdrop.quantization.spec import Kind
from qdrop.quantization.state import adarounds, quantizers
from qdrop.solver.loss import reconstruction_loss, rounding_loss
from qdrop.solver.memory import is_out_of_memory

log = logging.getLogger("qdrop")

NANOSECONDS_SAVED = {Kind.ACTIVATION: 3.5, Kind.WEIGHT: 12.0}
"""What compilation saves for each element quantized, in one iteration on one CPU thread; benchmarks/step.py."""
SECONDS_SAVED_ON_GPU = 1e-3
"""What a CUDA graph saves in an iteration: 200 launches of 5 microseconds; an estimate, not measured."""
COMPILE_SECONDS = 7.0
"""What it costs for a unit, on one CPU core."""


@dataclass(frozen=True)
class Inputs:
    """What changes from one iteration to the next, all on the unit's device."""

    full: Tensor
    """The unit's input in the full-precision network `[B, C, ...]`."""
    quantized: Tensor
    """The same in the quantized network."""
    target: Tensor
    """The unit's full-precision output `[B, C', ...]`."""
    seeds: Tensor
    """A seed for each mask of the drop `[S, 2]`, int32; S as :func:`masks_needed` says."""
    weight: Tensor
    """Weight of the rounding term, a scalar."""
    beta: Tensor
    """Its exponent, a scalar."""

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        return self.full, self.quantized, self.target, self.seeds, self.weight, self.beta


def masks_needed(unit: nn.Module) -> int:
    """Masks of the drop in one iteration: one for the unit's input, one for each activation quantizer."""
    return 1 + len(quantizers(unit, Kind.ACTIVATION))


Gradients = Callable[[Inputs], tuple[Tensor, ...]]
"""Reconstruction loss, rounding loss and the gradient of their sum for each learned parameter, in order."""


class UnitLoss(nn.Module):
    """The losses of a unit for one batch (Wei et al., QDrop, ICLR 2022, algorithm 1).

    Args:
        unit: A calibrated unit.
        config: For the probabilities of the drop and the precision.
    """

    def __init__(self, unit: nn.Module, config: ReconConfig) -> None:
        super().__init__()
        self.unit = unit
        self.drop = Drop(config.drop_prob, iter(()))
        self.input_drop = Drop(config.drop_prob if config.input_prob is None else config.input_prob, iter(()))
        self.reduced = config.precision == "bfloat16"
        self.roundings = tuple(adarounds(unit))

    def learned(self) -> dict[str, nn.Parameter]:
        """Names and parameters that reconstruction learns: roundings first, then the scales of activations."""
        wanted = [r.alpha for r in self.roundings] + [p for q in quantizers(self.unit) for p in q.learned()]
        names = {id(parameter): name for name, parameter in self.named_parameters()}
        return {names[id(parameter)]: parameter for parameter in wanted}

    def forward(
        self, full: Tensor, quantized: Tensor, target: Tensor, seeds: Tensor, weight: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction and rounding loss, scalars; for the arguments see :class:`Inputs`."""
        self.drop.seeds = self.input_drop.seeds = iter(seeds.unbind())
        given = self.input_drop.mix(quantized, full)
        with torch.autocast(full.device.type, torch.bfloat16, enabled=self.reduced, cache_enabled=False):
            out = self.unit(given)  # [B, C', ...]
        return reconstruction_loss(out.float(), target), rounding_loss(self.roundings, weight, beta)


def eager(loss: UnitLoss) -> Gradients:
    """The iteration as it is."""
    learned = tuple(loss.learned().values())
    # The same in every iteration; compiled code has them sooner than memory would.
    loss.drop.positions = loss.input_drop.positions = cache(scrambled_positions)

    def gradients(inputs: Inputs) -> tuple[Tensor, ...]:
        error, penalty = loss(*inputs.tensors())
        found = torch.autograd.grad(error + penalty, learned, materialize_grads=True)
        return error.detach(), penalty.detach(), *found

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

    def gradients(values: list[Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tensors = dict(zip(state, values, strict=True))
        leaves = {name: tensors[name].detach().requires_grad_() for name in learned}
        error, penalty = functional_call(loss, {**tensors, **leaves}, inputs)
        found = torch.autograd.grad(error + penalty, tuple(leaves.values()), materialize_grads=True)
        return error.detach(), penalty.detach(), *found

    values = [value.detach() for value in state.values()]
    return make_fx(gradients)(values, example.tensors()), values


class Compiler:
    """Decides whether to compile a unit's iteration, and keeps what was compiled for units of equal shape.

    Args:
        mode: `on`, `off`, or `auto`: where the iterations to come save more time than compiling takes. That is
            estimated from the sizes of the unit, not measured, so that a run that is repeated decides alike.
    """

    def __init__(self, mode: Literal["auto", "on", "off"]) -> None:
        self.mode = mode
        self._tried = False
        self._compiled: dict[str, Callable[..., Any]] = {}

    def __call__(self, loss: UnitLoss, example: Inputs, iters: int) -> Gradients:
        """The iteration of a unit, compiled where that pays.

        Args:
            loss: The unit's losses; its quantizers must be in the state they will be in.
            example: Inputs of the shapes it will have.
            iters: How often it will run.
        """
        if self.mode == "off":
            return eager(loss)
        saved = seconds_saved(loss.unit, len(example.full), iters, example.full.device)
        if self.mode == "auto" and saved <= COMPILE_SECONDS:
            log.info(
                "not compiled: that would take some %.0f s and save %.0f s of %d iterations",
                COMPILE_SECONDS,
                saved,
                iters,
            )
            return eager(loss)
        try:
            return self._compile(loss, example)
        except Exception as error:  # whatever is wrong with a compiler: it is not needed
            if is_out_of_memory(error):
                raise
            self.mode = "off"
            log.warning("going on without compilation, which failed here: %s", first_line(error))
            return eager(loss)

    def give_up(self) -> bool:
        """Where memory ran out: compile no more and let go of all compiled code and CUDA graphs of the process.

        Returns:
            Whether there can be any, so that it is worth another try; not a second time.
        """
        tried, self._tried, self.mode = self._tried, False, "off"
        self._compiled.clear()
        torch.compiler.reset()
        return tried

    def _compile(self, loss: UnitLoss, example: Inputs) -> Gradients:
        self._tried = True
        graph, values = traced(loss, example)
        tensors = (*values, *example.tensors())
        shapes = [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in tensors]
        key = hashlib.sha256(f"{graph.code}{shapes}".encode()).hexdigest()
        if key not in self._compiled:
            mode = "reduce-overhead" if example.full.is_cuda else None  # CUDA graphs
            compiled = torch.compile(graph, mode=mode, dynamic=False, fullgraph=True)
            started = time.perf_counter()
            _warm_up(compiled, values, example)
            log.info("compiled the iteration in %.0f s", time.perf_counter() - started)
            self._compiled[key] = compiled
        else:
            log.info("compiled code shared with a unit of equal shape")
        run = self._compiled[key]

        def gradients(inputs: Inputs) -> tuple[Tensor, ...]:
            error, penalty, *found = _call(run, values, inputs)
            return error.clone(), penalty.clone(), *found  # a CUDA graph writes the next ones in the same place

        return gradients


def _call(compiled: Callable[..., Any], values: list[Tensor], inputs: Inputs) -> tuple[Tensor, ...]:
    """Compiled code for one iteration; on a GPU what it gave for the one before is overwritten."""
    if inputs.full.is_cuda:
        torch.compiler.cudagraph_mark_step_begin()
    found: tuple[Tensor, ...] = compiled(values, inputs.tensors())
    return found


def _warm_up(compiled: Callable[..., Any], values: list[Tensor], example: Inputs) -> None:
    """Have the code compiled; on a GPU the second call records a CUDA graph and the third replays it.

    All of that here, where an error means to go on without.
    """
    if example.full.is_cuda:
        torch.cuda.empty_cache()  # the graph has memory of its own, and cannot take what tracing has left in the cache
    for _ in range(3 if example.full.is_cuda else 1):
        _call(compiled, values, example)


def seconds_saved(unit: nn.Module, batch: int, iters: int, device: torch.device) -> float:
    """Time that compiling a unit is expected to save, in seconds.

    Args:
        unit: The unit.
        batch: Images in an iteration.
        iters: Iterations to come.
        device: Where it runs.
    """
    if device.type != "cpu":
        return iters * SECONDS_SAVED_ON_GPU
    nanoseconds = 0.0
    for quantizer in quantizers(unit):
        spec = quantizer.spec
        elements = math.prod(spec.shape) * (batch if spec.kind is Kind.ACTIVATION else 1)
        nanoseconds += elements * NANOSECONDS_SAVED[spec.kind]
    return iters * nanoseconds * 1e-9
