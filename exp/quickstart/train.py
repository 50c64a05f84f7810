"""Train the digits network that comes with the package. Well under a minute on a CPU.

    python exp/quickstart/train.py

Writes qdrop/models/assets/digits_resnet.safetensors and prints the top-1 on digits it has not seen.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import qdrop.models
from qdrop.config import DataConfig
from qdrop.models.digits import digits_resnet
from qdrop.tasks.classification.accuracy import accuracy
from qdrop.tasks.classification.datasets import digits
from qdrop.tasks.classification.images import DIGITS_MEAN, DIGITS_STD, validation_loader

OUT = Path(qdrop.models.__file__).parent / "assets" / "digits_resnet.safetensors"
EPOCHS, BATCH, LR, WEIGHT_DECAY = 60, 32, 0.1, 5e-4


def shift(images: Tensor) -> Tensor:
    """Each image [N, 1, 8, 8] moved by -1, 0 or 1 pixel in both directions; zeros come in."""
    count, side = len(images), images.shape[-1]
    rows = torch.arange(side) + torch.randint(3, (count, 1))  # [N, 8]
    cols = torch.arange(side) + torch.randint(3, (count, 1))  # [N, 8]
    padded = nn.functional.pad(images, (1, 1, 1, 1))[:, 0]  # [N, 10, 10]
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], cols[:, None, :]].unsqueeze(1)


def main() -> None:
    """Train, save, report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is tiny
    images, labels = digits(train=True)  # [1201, 1, 8, 8] in 0..1
    targets = torch.tensor(labels)
    model = digits_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)

    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            inputs = (shift(images[chosen]) - DIGITS_MEAN) / DIGITS_STD
            loss = nn.functional.cross_entropy(model(inputs), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    OUT.parent.mkdir(exist_ok=True)
    save_file(model.state_dict(), OUT)
    top1 = accuracy(model, validation_loader(DataConfig(type="digits", num_workers=0)), "cpu")
    print(f"top-1 {top1:.2f}% on {len(digits(train=False)[0])} held-out digits; wrote {OUT}")


if __name__ == "__main__":
    main()
