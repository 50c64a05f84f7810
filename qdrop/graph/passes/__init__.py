"""Graph passes: rewrites of a captured graph that leave what it computes, and make it simpler to quantize."""

from torch import fx

from qdrop.graph.passes.constants import fold_constants
from qdrop.graph.passes.norms import fold_batch_norms
from qdrop.graph.passes.sizes import localize_sizes
from qdrop.graph.passes.strides import slice_before_strided_products
from qdrop.graph.passes.tidy import tidy


def simplify(graph: fx.GraphModule) -> None:
    """Bring a captured graph into the form that everything after reads.

    Afterwards no operator is idle or bound to a device or memory format, what parameters alone decide is a constant,
    a batch norm is folded or a scale and a shift, and a size comes from a tensor close by.
    """
    tidy(graph)
    fold_constants(graph)
    fold_batch_norms(graph)
    localize_sizes(graph)
    slice_before_strided_products(graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
