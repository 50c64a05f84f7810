"""Blocks of a small network with a batch for each, for the tests of one iteration."""

import torch
from networks import WIDTH, images, network, quantized

from qdrop.config import ReconConfig
from qdrop.graph.scopes import learning_rounding
from qdrop.graph.split import segments
from qdrop.quantization.drop import draw_seeds
from qdrop.quantization.state import dropping, quantizing
from qdrop.solver.activations.cache import run_all
from qdrop.solver.step import Inputs, UnitLoss, masks_needed

CPU = torch.device("cpu")
CONFIG = ReconConfig(batch_size=4, iters=12)


def parts_of(name="residual", quant=None):
    """The units of a small network, by name."""
    return {p.name: p for p in segments(*quantized(network(name), quant)) if p.unit is not None}


def inputs_of(part, full, seed=0):
    """A batch for a unit, its inputs in the quantized network a little off."""
    target = run_all(part.module, full, 8, CPU)
    seeds = draw_seeds(masks_needed(part.module, len(full)), torch.Generator().manual_seed(seed))
    return Inputs(full, tuple(x * 1.01 for x in full), target, seeds, torch.tensor(0.1), torch.tensor(3.0))


def blocks(name="residual", quant=None):
    """The two blocks of the network, alike in shape, with a batch for each."""
    parts = parts_of(name, quant)
    full = run_all(parts["stem.0"].module, (images(),), 8, CPU)
    return [(parts[name], inputs_of(parts[name], full)) for name in ("body.0", "body.1")]


def decoder():
    """A block that reads two tensors, and a batch for it."""
    part = parts_of("unet")["decoder"]
    return part, inputs_of(
        part, (images(size=4)[:, :1].expand(-1, WIDTH, -1, -1), images()[:, :1].expand(-1, WIDTH, -1, -1))
    )


def gradients(part, inputs, make, config=CONFIG):
    """What an iteration gives, and the names of what it learns."""
    loss = UnitLoss(part.module, config)
    with quantizing(part.module), dropping(part.module, loss.drop), learning_rounding(part.module):
        return make(loss, inputs)(inputs), list(loss.learned())
