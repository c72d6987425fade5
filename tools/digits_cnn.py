"""The small convolutional network that the fixtures pretrain on the digits 0-4.

It lives in a module of its own because `torch.save(model)` writes the name `digits_cnn.DigitsCnn` into the file: the pickled
whole model in the fixtures must carry a stable module name, not `__main__`.
The layer names (`conv1.conv.weight`, ..., `fc.weight`) are what the state dict and the ONNX graph carry.
"""

from __future__ import annotations

import torch
from torch import nn

CLASSES = ("0", "1", "2", "3", "4")
FEATURES = 64


class ConvBlock(nn.Module):
    """Convolution 3x3, batch normalisation, ReLU; halves the picture when `stride` is 2."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class DigitsCnn(nn.Module):
    """[n, 3, 32, 32] normalised pictures -> [n, 5] logits; the features are `flatten`'s output, [n, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 16, stride=1)
        self.conv2 = ConvBlock(16, 24, stride=2)
        self.conv3 = ConvBlock(24, 48, stride=2)
        self.conv4 = ConvBlock(48, FEATURES, stride=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(FEATURES, len(CLASSES))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """[n, 3, 32, 32] -> [n, 64], the tensor that the classifier reads."""
        x = self.conv4(self.conv3(self.conv2(self.conv1(x))))
        return self.flatten(self.pool(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))
