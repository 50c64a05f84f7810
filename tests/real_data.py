"""The real images and weights, for the tests that need them."""

import os
from pathlib import Path

import pytest


def real_folder():
    """The folder that holds `cifar10/` and `imagenet/`; without it the test is skipped."""
    if "QDROP_DATA" not in os.environ:
        pytest.skip("QDROP_DATA is not set: the folder that holds cifar10/ and imagenet/")
    return Path(os.environ["QDROP_DATA"]).resolve()
