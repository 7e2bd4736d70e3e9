"""ResNet-50 in torch with the weights of one in jaxdet."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from jaxdet.checkpoints.names.mmdet import to_mmdet
from jaxdet.nn.backbones.resnet import BLOCKS

FROZEN = ("conv1", "bn1", "layer1")


class Bottleneck(nn.Module):
    """A residual block of a torch ResNet-50; module names are torchvision's, so that weights fit by name."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != 4 * channels:
            shortcut = nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * channels))

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class TorchResNet50(nn.Module):
    """C2 to C5 of an image; batch norm by stored statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, blocks in enumerate(BLOCKS[50], 1):
            channels = 32 * 2**stage
            layers = []
            for i in range(blocks):
                layers.append(Bottleneck(inputs, channels, 2 if stage > 1 and i == 0 else 1))
                inputs = 4 * channels
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x: Any) -> list[Any]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        features = []
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
            features.append(x)
        return features


def twin_of(variables: Any) -> Any:
    """The torch module with the weights of jaxdet's, its first stages frozen."""
    state = to_mmdet({name: {"backbone": jax.tree.map(np.asarray, tree)} for name, tree in variables.items()})
    twin = TorchResNet50().eval()
    named = {name.removeprefix("backbone."): torch.tensor(array) for name, array in state.items()}
    missing, unexpected = twin.load_state_dict(named, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in FROZEN)
    return twin


def works(variables: Any, image: np.ndarray) -> list[Callable[[], list[Any]]]:
    """Features of ``image [1, H, W, 3]``; and gradients of two kernels of the mean square of all features."""
    twin, x = twin_of(variables), torch.from_numpy(image.transpose(0, 3, 1, 2).copy())

    def forward() -> list[Any]:
        with torch.no_grad():
            return twin(x)

    def both() -> list[Any]:
        twin.zero_grad()
        sum(f.square().mean() for f in twin(x)).backward()
        return [twin.layer2[0].conv1.weight.grad, twin.layer4[2].conv3.weight.grad]

    return [forward, both]
