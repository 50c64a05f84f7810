"""What all tests share: one thread for each process, since the networks are small and the tests run side by side."""

import pytest
import torch
from captured_once import captured_once

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _a_network_is_captured_once():
    """In the steps of the method; `qdrop.graph.capture` itself is as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qdrop.pipeline.capture_graph", captured_once)
        yield
