"""What goes wrong in an export."""

from qdrop.errors import QdropError


class ExportError(QdropError, ValueError):
    """A model that cannot be written; names the node, its operation and what is supported, or what is missing."""
