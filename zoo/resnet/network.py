"""The residual networks of He et al. 2015 (arXiv 1512.03385) for small images, section 4.2: three stages of blocks
y = F(x, w) + x, or the same without the shortcut or without batch normalization, to see what each of them does; and
networks that halve the image by max-pooling, which learn in fewer passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("plain", "batch_norm", "residual", "residual_batch_norm")
INITS = ("default", "he")


class Shortcut(nn.Module):
    """The shortcut around a block that changes the shape, without parameters: He et al.'s option A.

    Every `stride`-th pixel is taken, and the new channels are zero.
    """

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) to (N, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Block(nn.Module):
    """Two 3x3 convolutions F(x, w), and the shortcut around them: y = relu(F(x, w) + x).

    Args:
        in_channels: channels of x.
        channels: channels of y.
        stride: of the first convolution.
        norm: batch normalization after each convolution.
        residual: add x.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, norm: bool, residual: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=not norm)
        self.norm1 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
        self.norm2 = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.relu2 = nn.ReLU(inplace=True)
        changes = in_channels != channels or stride != 1
        self.shortcut = Shortcut(channels - in_channels, stride) if residual and changes else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, H, W) to (N, channels, ceil(H / stride), ceil(W / stride))."""
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x) if self.residual else y)


class ResNet(nn.Module):
    """A residual network for small images; the default is the ResNet-20 of He et al. for CIFAR-10.

    Stages of equally many blocks; each stage but the first halves the image and begins with a change of width. With
    `depth` 20, 32, 44, 56, 110 and three input channels it has the paper's 0.27, 0.46, 0.66, 0.85, 1.7 million
    parameters (table 6).

    Args:
        in_channels: of the images.
        num_classes: number of logits.
        depth: layers with weights: the first convolution, two in each block, and the linear one at the end. With
            three stages 6 n + 2 for n blocks in each.
        widths: channels of each stage.
        kind: "plain" convolutions; with "batch_norm"; "residual", with shortcuts but no batch normalization;
            "residual_batch_norm", the paper's.
        init: of the convolutions: "default" is torch's (uniform, variance 1 / (3 fan_in)), "he" keeps the variance
            of the gradient through ReLUs (normal, variance 2 / fan_out; He et al. 2015, arXiv 1502.01852, eq. 14).
        patch: side of the squares of pixels that are folded into channels at the entrance (pixel-unshuffle), which
            makes everything after it `patch`^2 times cheaper; 1 leaves the image as it is.

    Raises:
        ValueError: the depth does not come out even, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        kind: str = "residual_batch_norm",
        init: str = "he",
        patch: int = 1,
    ) -> None:
        super().__init__()
        blocks = _blocks_in_stage(depth, widths, head=2, block=2)
        norm, residual = _parts(kind, init)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch) if patch > 1 else nn.Identity(),
            nn.Conv2d(in_channels * patch**2, widths[0], 3, padding=1, bias=not norm),
            nn.BatchNorm2d(widths[0]) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, width in enumerate(widths):
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(Block(channels, width, stride, norm, residual))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)
        _initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class PooledStage(nn.Module):
    """Half as high and wide: a convolution, max-pooling, and blocks y = relu(F(x, w) + x) of one convolution each.

    An image that is one pixel high or wide is not halved.

    Args:
        in_channels: channels of x.
        channels: channels of y.
        blocks: number of blocks.
        norm: batch normalization after each convolution, and after the pooling behind the first, where it is cheaper.
        residual: add x.
    """

    def __init__(self, in_channels: int, channels: int, blocks: int, norm: bool, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=not norm)
        self.pool = nn.MaxPool2d(2)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=not norm),
                nn.BatchNorm2d(channels) if norm else nn.Identity(),
            )
            for _ in range(blocks)
        )
        self.relus = nn.ModuleList(nn.ReLU(inplace=True) for _ in range(blocks))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, H, W) to (N, channels, H // 2, W // 2)."""
        y = self.conv(x)
        y = self.relu(self.norm(self.pool(y) if min(y.shape[2:]) > 1 else y))
        for block, relu in zip(self.blocks, self.relus, strict=True):
            y = relu(block(y) + y if self.residual else block(y))
        return y


class PooledResNet(nn.Module):
    """A residual network for small images that learns in few passes over the data.

    A convolution of 2x2 pixels, without normalization; stages, of which the first one halves the image, too; and the
    maximum of each channel over the image, which is what the linear layer sees. The pooling is as in D. Page's ResNet-9
    (DAWNBench, 2018), the entrance as in the networks of Jordan 2024 (arXiv 2404.00498), both for CIFAR-10.

    Args:
        in_channels: of the images, which must have at least 2x2 pixels, after `patch`.
        num_classes: number of logits.
        depth: layers with weights: the first convolution, in each stage one and one for each block, and the linear
            layer. With three stages 3 n + 5 for n blocks in each.
        widths: channels of each stage; the first convolution has half of the first one's.
        kind: see `ResNet`, as for the next two.
        init: of the convolutions.
        patch: side of the squares of pixels that are folded into channels at the entrance.

    Raises:
        ValueError: the depth does not come out even, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 8,
        widths: Sequence[int] = (32, 64, 128),
        kind: str = "residual_batch_norm",
        init: str = "he",
        patch: int = 1,
    ) -> None:
        super().__init__()
        blocks = _blocks_in_stage(depth, widths, head=2 + len(widths), block=1)
        norm, residual = _parts(kind, init)
        channels = max(1, widths[0] // 2)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch) if patch > 1 else nn.Identity(),
            nn.Conv2d(in_channels * patch**2, channels, 2),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        for width in widths:
            stages.append(PooledStage(channels, width, blocks, norm, residual))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        _initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, in_channels, H, W) to logits (N, num_classes)."""
        return self.head(self.stages(self.stem(x)).amax((2, 3)))


def _blocks_in_stage(depth: int, widths: Sequence[int], head: int, block: int) -> int:
    """How many blocks of `block` layers each stage has, where `head` layers of the depth are in none."""
    if not widths or min(widths) < 1:
        raise ValueError(f"widths {list(widths)} must name at least one stage, and at least 1 channel for each")
    blocks, rest = divmod(depth - head, block * len(widths))
    if blocks < 1 or rest:
        near = [head + block * len(widths) * n for n in (max(1, blocks), max(1, blocks) + 1)]
        raise ValueError(f"depth {depth} does not come out even over {len(widths)} stages; try {near[0]} or {near[1]}")
    return blocks


def _parts(kind: str, init: str) -> tuple[bool, bool]:
    """Whether there is batch normalization, and whether there are shortcuts."""
    if kind not in KINDS or init not in INITS:
        raise ValueError(f"kind {kind!r} must be one of {', '.join(KINDS)}, init {init!r} one of {', '.join(INITS)}")
    return "batch_norm" in kind, "residual" in kind


def _initialize(network: nn.Module, init: str) -> None:
    if init == "he":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
