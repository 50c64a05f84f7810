"""What is written in products as a network is captured: attention, and sums over named indices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch.export import ExportedProgram


def products(program: ExportedProgram) -> dict[Any, Callable[..., Any]]:
    """Operators of a program, and the functions that are traced in their place."""
    aten = torch.ops.aten
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    called = {node.target for graph in graphs for node in graph.nodes}
    if called.isdisjoint((aten.einsum.default, aten.tensordot.default)):  # PyTorch's own forms take a second to list
        return {aten.scaled_dot_product_attention.default: attention}
    known = torch.export.default_decompositions()

    def summed(equation: str, operands: Sequence[Tensor], **given: Any) -> Tensor:
        found = einsum(equation, operands)
        otherwise: Tensor = known[aten.einsum.default](equation, operands, **given) if found is None else found
        return otherwise

    return {
        aten.scaled_dot_product_attention.default: attention,
        aten.einsum.default: summed,
        aten.tensordot.default: known[aten.tensordot.default],
    }


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(query @ key^T * scale + mask) @ value` (Vaswani et al., 2017, eq. 1), in products that are quantized.

    Args:
        query: `[..., L, E]`.
        key: `[..., S, E]`.
        value: `[..., S, V]`.
        attn_mask: Added to the scores `[..., L, S]`, or, of booleans, where to look.
        dropout_p: Not used: a network is captured in evaluation mode.
        is_causal: Whether each of L sees only those of S before it.
        scale: Of the scores; None: 1/sqrt(E).
        enable_gqa: Whether several queries share a key and a value, along axis -3.

    Returns:
        `[..., L, V]`.
    """
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(shared, -3), value.repeat_interleave(shared, -3)
    scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scale is None else scale), key.transpose(-2, -1))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -1e9)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.matmul(torch.softmax(scores, -1), value)


def einsum(equation: str, operands: Sequence[Tensor]) -> Tensor | None:
    """A sum over indices as a matrix product whose first operand keeps its axes: images `[N, ..., K] @ [K, M]`.

    PyTorch's own form joins the axis of the images with others, and a layer in that form cannot learn.

    Args:
        equation: As of `torch.einsum`: `"nchw,oc->nohw"`.
        operands: Its tensors.

    Returns:
        The sum; None where it is no product of two operands that share only what is summed over.
    """
    terms, _, out = equation.replace(" ", "").partition("->")
    names = terms.split(",")
    if len(names) != 2 or not out.isalpha() or any(len(set(name)) < len(name) for name in (*names, out)):
        return None
    (first, left), (second, right) = sorted(zip(names, operands, strict=True), key=lambda pair: not _of_images(pair[1]))
    shared = [axis for axis in first if axis in second]
    kept, given = ([axis for axis in name if axis not in shared] for name in (first, second))
    if not (shared and given) or sorted(kept + given) != sorted(out):
        return None
    left = left.permute([first.index(axis) for axis in kept + shared]).flatten(len(kept))
    right = right.permute([second.index(axis) for axis in shared + given])
    product = torch.matmul(left, right.flatten(0, len(shared) - 1).flatten(1))
    apart = product.unflatten(-1, right.shape[len(shared) :])
    return apart.permute([(kept + given).index(axis) for axis in out])


def _of_images(value: Tensor) -> bool:
    """Whether the first axis may have any length."""
    return isinstance(value.shape[0], SymInt)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside: `nn.MultiheadAttention` computes by operators, not in one of its own."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
