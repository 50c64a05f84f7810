"""The stage over the whole network, once its units have learned."""

from qdrop.solver.network.stage import NAME, NetworkReport, learn_network, relative_error

__all__ = ["NAME", "NetworkReport", "learn_network", "relative_error"]
