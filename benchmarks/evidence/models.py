"""The two image models; the GPT is that of `examples/model.py`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

PIXELS, SIDE, CLASSES = 64, 8, 10


class MLP(nn.Module):
    """Two hidden layers.

    Args:
        hidden: width of both.
    """

    def __init__(self, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(PIXELS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of images (n, 64)."""
        return F.cross_entropy(self.layers(images), labels)


class ConvNet(nn.Module):
    """Three convolutions with group norm, which keeps no running statistics that a held-out loss would depend on.

    Args:
        channels: of each convolution.
    """

    def __init__(self, channels: tuple[int, int, int] = (8, 16, 32)) -> None:
        super().__init__()
        first, second, third = channels
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.GroupNorm(4, first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(4, second),
            nn.ReLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(third * 4, CLASSES),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of images (n, 64)."""
        pixels = images.reshape(-1, 1, SIDE, SIDE)
        return F.cross_entropy(self.layers(pixels), labels)
