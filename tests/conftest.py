"""One thread for each test process: the networks here are small, and the tests run side by side."""

import torch

torch.set_num_threads(1)
