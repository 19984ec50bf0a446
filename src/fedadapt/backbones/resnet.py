"""Residual networks for small images: the CIFAR family and the ResNet-26 of residual adapters.

Both are stacks of basic blocks whose shortcuts hold no parameters, so nearly every weight sits in a 3x3
convolution, which is where a parallel adapter costs a ninth. Sources:

- K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, section 4.2
  (CIFAR ResNet, shortcut option A).
- S.-A. Rebuffi, H. Bilen, A. Vedaldi, *Efficient Parametrization of Multi-Domain Deep Neural Networks*,
  CVPR 2018, section 4 (ResNet-26; average-pooled shortcuts, a norm after the last block).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Shortcut = Literal["subsample", "average"]


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """A bias-free 3x3 convolution that keeps (stride 1) or halves (stride 2) height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a parameter-free shortcut.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out; the shortcut pads the missing ones with zeros.
        stride: of the first convolution and of the shortcut.
        shortcut: how the shortcut shrinks the map: ``"subsample"`` keeps every second pixel (He et al.,
            option A), ``"average"`` averages 2x2 pixels (Rebuffi et al.).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.shortcut = shortcut
        missing = out_channels - in_channels
        # He et al. pad on both sides, Rebuffi et al. append; published weights rely on which.
        self.padding = (missing // 2, missing - missing // 2) if shortcut == "subsample" else (0, missing)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D h w"]:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = (
                # Pooling a single pixel picks it, and its gradient keeps the layout, which that of a slice does not.
                functional.avg_pool2d(x, 1, self.stride)
                if self.shortcut == "subsample"
                else functional.avg_pool2d(x, self.stride, ceil_mode=True)
            )
        if any(self.padding):
            x = functional.pad(x, (0, 0, 0, 0, *self.padding))
        return functional.relu(y + x, inplace=True)


class ResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling and a linear head.

    Args:
        blocks: basic blocks in each stage.
        widths: channels of the stem, then of each stage.
        strides: stride of the first block of each stage.
        shortcut: see `BasicBlock`.
        stem_relu: whether a ReLU follows the stem's norm.
        end_norm: whether a norm and a ReLU follow the last block.
        num_classes: outputs of the head.
        in_channels: channels of an image.
    """

    def __init__(
        self,
        blocks: int,
        widths: tuple[int, int, int, int],
        strides: tuple[int, int, int],
        shortcut: Shortcut,
        *,
        stem_relu: bool,
        end_norm: bool,
        num_classes: int,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.stem_relu = stem_relu
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                BasicBlock(before, width, stride, shortcut),
                *(BasicBlock(width, width, 1, shortcut) for _ in range(blocks - 1)),
            )
            for before, width, stride in zip(widths[:-1], widths[1:], strides, strict=True)
        )
        self.end_norm = nn.BatchNorm2d(widths[-1]) if end_norm else None
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        x = self.bn1(self.conv1(x))
        if self.stem_relu:
            x = functional.relu(x, inplace=True)
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        if self.end_norm is not None:
            x = functional.relu(self.end_norm(x), inplace=True)
        # Not `mean`: its gradient comes back in another layout, which slows the last block down.
        return self.fc(x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3]))


def cifar_resnet(depth: int, *, width: float = 1.0, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """The CIFAR ResNet of He et al. with 16, 32 and 64 channels times `width`.

    Args:
        depth: 6n + 2 layers: 20, 32, 44, 56, 110.
        width: factor on every channel count.
        num_classes: outputs of the head.
        in_channels: channels of an image.
    """
    base = [max(1, round(channels * width)) for channels in (16, 16, 32, 64)]
    return ResNet(
        (depth - 2) // 6,
        (base[0], base[1], base[2], base[3]),
        (1, 2, 2),
        "subsample",
        stem_relu=True,
        end_norm=False,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def resnet26(*, width: float = 1.0, num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """The ResNet-26 of Rebuffi et al.: a 32-channel stem, then 64, 128 and 256 channels times `width`.

    Every stage halves the map, so 32x32 images end at 4x4. Not timm's bottleneck net of the same name.

    Args:
        width: factor on every channel count.
        num_classes: outputs of the head.
        in_channels: channels of an image.
    """
    base = [max(1, round(channels * width)) for channels in (32, 64, 128, 256)]
    return ResNet(
        4,
        (base[0], base[1], base[2], base[3]),
        (2, 2, 2),
        "average",
        stem_relu=False,
        end_norm=True,
        num_classes=num_classes,
        in_channels=in_channels,
    )


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draws fresh weights in place: He-normal (fan out) convolutions, small normal head, unit norms."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
