"""Residual networks for small images.

The networks of He et al. 2015 (arXiv 1512.03385), section 4.2, have three stages of blocks y = F(x, w) + x; shortcuts
and batch normalization can be removed, to see the effect of each. `PooledResNet` halves the image by max-pooling and
learns in fewer passes over the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_TYPES = ("plain", "batch_norm", "residual", "residual_batch_norm")
INITS = ("default", "he")


class Shortcut(nn.Module):
    """Parameter-free shortcut around a block that changes the shape: He et al.'s option A.

    It keeps every `stride`-th pixel and sets the new channels to zero.

    Args:
        new_channels: number of channels to add.
        stride: factor by which height and width are reduced.
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
        stride: stride of the first convolution.
        norm: use batch normalization after each convolution.
        residual: use the shortcut.
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


class CIFARResNet(nn.Module):
    """A residual network for small images; the default is the ResNet-20 of He et al. for CIFAR-10.

    All stages have the same number of blocks; each stage but the first halves the image and changes the width. With
    `depth` 20, 32, 44, 56, 110 and three input channels it has the paper's 0.27, 0.46, 0.66, 0.85, 1.7 million
    parameters (table 6).

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of logits.
        depth: number of layers with weights: the first convolution, two per block, and the linear layer; 6 n + 2 for
            three stages of n blocks.
        widths: channels of each stage.
        block_type: "plain" for convolutions only; "batch_norm" to add batch normalization; "residual" for shortcuts
            without batch normalization; "residual_batch_norm" for both, as in the paper.
        init: initialization of the convolutions: "default" for torch's (uniform, variance 1 / (3 fan_in)), "he" to
            preserve the variance of the gradient through ReLUs (normal, variance 2 / fan_out; He et al. 2015, arXiv
            1502.01852, eq. 14).
        patch_size: side of the squares of pixels that become channels of the first convolution's input
            (pixel-unshuffle), which reduces the cost by its square; 1 for none.

    Raises:
        ValueError: the depth does not fit the number of stages, a name is unknown, or the shape does not fit.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        block_type: str = "residual_batch_norm",
        init: str = "he",
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        in_channels = _channels(input_shape, patch_size)
        blocks = _blocks_in_stage(depth, widths, head=2, block=2)
        norm, residual = _parts(block_type, init)
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch_size) if patch_size > 1 else nn.Identity(),
            nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1, bias=not norm),
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


class WhiteningConv(nn.Conv2d):
    """A 2x2 convolution whose filters whiten patches of training images, without padding.

    The filters are the eigenvectors of E[p p^T] over patches p, each divided by the root of its eigenvalue, with both
    signs, so that nothing is lost in the ReLU that follows: 8 of gray images, 24 of color. They are not trained; the
    biases are. From Jordan 2024 (arXiv 2404.00498), section 3.2. Before `whiten` the filters are random.

    Args:
        in_channels: channels of an image.
        regularizer: number that is added to the eigenvalues, for images in [-1, 1].
    """

    whitened: Tensor

    def __init__(self, in_channels: int, regularizer: float = 0.01) -> None:
        super().__init__(in_channels, 8 * in_channels, 2)
        self.regularizer = regularizer
        self.weight.requires_grad_(False)
        self.register_buffer("whitened", torch.tensor(False))

    @torch.no_grad()
    def whiten(self, x: Tensor) -> None:
        """Sets the filters from images (N, in_channels, H, W), unless they are set already, as by a checkpoint."""
        if self.whitened:
            return
        patches = F.unfold(x.double().cpu(), 2).transpose(1, 2).flatten(0, 1)  # (patches, 4 in_channels)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (vectors / (values + self.regularizer).sqrt()).T.view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))
        self.whitened.fill_(True)


class PooledStage(nn.Module):
    """A convolution, max-pooling by 2, and blocks y = relu(F(x, w) + x) of one convolution each.

    An image that is one pixel high or wide is not pooled.

    Args:
        in_channels: channels of x.
        channels: channels of y.
        blocks: number of blocks.
        norm: use batch normalization after each convolution, and for the first one after the pooling, where it is
            cheaper.
        residual: use shortcuts.
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

    A 2x2 convolution without normalization; stages, each of which halves the image; and the maximum of each channel
    over the image, followed by a linear layer. Pooling as in D. Page's ResNet-9 (DAWNBench, 2018). The shape of the
    first convolution, 2x2 without padding, is that of Jordan 2024 (arXiv 2404.00498).

    Args:
        input_shape: shape of an image, (C, H, W), at least 2x2 pixels after `patch_size`.
        num_classes: number of logits.
        depth: number of layers with weights: the first convolution, one per stage, one per block, and the linear layer;
            3 n + 5 for three stages of n blocks.
        widths: channels of each stage; the first convolution has half the channels of the first stage.
        block_type: see `CIFARResNet`, as for the other arguments.
        init: initialization of the convolutions.
        patch_size: side of the squares of pixels that become channels.
        whitening: let the first convolution be a `WhiteningConv`, whose filters are computed from training images by
            `whiten`; it has 8 filters for each channel of its input.

    Raises:
        ValueError: the depth does not fit the number of stages, a name is unknown, or the shape does not fit.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        depth: int = 8,
        widths: Sequence[int] = (32, 64, 128),
        block_type: str = "residual_batch_norm",
        init: str = "he",
        patch_size: int = 1,
        whitening: bool = False,
    ) -> None:
        super().__init__()
        in_channels = _channels(input_shape, patch_size, least=2) * patch_size**2
        blocks = _blocks_in_stage(depth, widths, head=2 + len(widths), block=1)
        norm, residual = _parts(block_type, init)
        first = WhiteningConv(in_channels) if whitening else nn.Conv2d(in_channels, max(1, widths[0] // 2), 2)
        channels = first.out_channels
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch_size) if patch_size > 1 else nn.Identity(), first, nn.ReLU(inplace=True)
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

    def whiten(self, x: Tensor) -> None:
        """Computes the filters of a first convolution that whitens from training images (N, in_channels, H, W)."""
        unshuffle, first = self.stem[0], self.stem[1]
        if isinstance(first, WhiteningConv):
            first.whiten(unshuffle(x))


def _channels(input_shape: Sequence[int], patch_size: int, least: int = 1) -> int:
    """Channels of an image whose sides are divisible into patches, at least `least` on each side."""
    if len(input_shape) != 3:
        raise ValueError(f"a ResNet takes images (C, H, W), not samples of the shape {tuple(input_shape)}")
    channels, height, width = input_shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size {patch_size} does not divide images of {height}x{width} pixels")
    if min(height, width) // patch_size < least:
        raise ValueError(
            f"images of {height}x{width} pixels are too small for a pooled ResNet with patch_size {patch_size}; it "
            f"needs {least * patch_size}x{least * patch_size}"
        )
    return channels


def _blocks_in_stage(depth: int, widths: Sequence[int], head: int, block: int) -> int:
    """Number of blocks per stage, for blocks of `block` layers and `head` layers outside of blocks."""
    if not widths or min(widths) < 1:
        raise ValueError(f"widths {list(widths)} must have at least one stage, of at least 1 channel each")
    blocks, rest = divmod(depth - head, block * len(widths))
    if blocks < 1 or rest:
        near = [head + block * len(widths) * n for n in (max(1, blocks), max(1, blocks) + 1)]
        raise ValueError(f"depth {depth} does not divide into {len(widths)} equal stages; try {near[0]} or {near[1]}")
    return blocks


def _parts(block_type: str, init: str) -> tuple[bool, bool]:
    """Whether the blocks have batch normalization, and whether they have shortcuts."""
    if block_type not in BLOCK_TYPES:
        raise ValueError(f"block_type is {block_type!r}; choose one of {', '.join(BLOCK_TYPES)}")
    if init not in INITS:
        raise ValueError(f"init is {init!r}; choose one of {', '.join(INITS)}")
    return "batch_norm" in block_type, "residual" in block_type


def _initialize(network: nn.Module, init: str) -> None:
    if init == "he":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
