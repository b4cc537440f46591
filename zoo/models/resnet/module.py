"""Residual networks as a LightningModule: those of He et al. for small images, a pooled one, and torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.errors import UserError, check_choice, did_you_mean
from zoo.models.classifier import Classifier
from zoo.models.resnet.network import BLOCK_TYPES, INITS, PooledResNet, ResNet

NETWORKS = {"cifar": ResNet, "pooled": PooledResNet}


class ResNetClassifier(Classifier):
    """Residual network y = F(x, w) + x for image classification.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes.
        backbone: "cifar" for the networks of He et al. for small images; "pooled" for
            `zoo.models.resnet.network.PooledResNet`; or one of torchvision's, such as "resnet18".
        weights: pretrained weights of torchvision's network: "DEFAULT", or None for random weights. The last layer is
            replaced; grey images are repeated over three channels.
        depth: number of layers with weights; see `zoo.models.resnet.network.ResNet`, as for the next arguments. They
            apply to "cifar" and "pooled".
        widths: channels of each stage.
        block_type: blocks with or without shortcuts and batch normalization.
        init: initialization of the convolutions.
        patch_size: side of the squares of pixels that become channels.
        **kwargs: arguments of `zoo.models.classifier.Classifier`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        backbone: str = "cifar",
        weights: str | None = None,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        block_type: Literal["plain", "batch_norm", "residual", "residual_batch_norm"] = "residual_batch_norm",
        init: Literal["default", "he"] = "he",
        patch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        if len(input_shape) != 3:
            raise UserError(f"ResNetClassifier takes images (C, H, W), not samples of the shape {tuple(input_shape)}")
        check_choice("block_type", block_type, BLOCK_TYPES)
        check_choice("init", init, INITS)
        channels, height, width = input_shape
        if backbone in NETWORKS:
            if weights is not None:
                raise UserError(
                    f"weights {weights} are for torchvision's networks; choose one, such as backbone resnet18"
                )
            if patch_size < 1 or height % patch_size or width % patch_size:
                raise UserError(f"patch_size {patch_size} does not divide images of {height}x{width} pixels")
            if backbone == "pooled" and min(height, width) // patch_size < 2:
                raise UserError(
                    f"images of {height}x{width} pixels are too small for backbone pooled with patch_size "
                    f"{patch_size}; it needs {2 * patch_size}x{2 * patch_size}"
                )
            try:
                network: nn.Module = NETWORKS[backbone](
                    channels, num_classes, depth, widths, block_type, init, patch_size
                )
            except ValueError as error:
                raise UserError(str(error)) from error
        else:
            network = self._torchvision(backbone, weights, channels, num_classes)
        super().__init__(network, input_shape, num_classes, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # The checkpoint holds the weights, so loading it does not download them again.
        checkpoint["hyper_parameters"]["weights"] = None

    @staticmethod
    def _torchvision(name: str, weights: str | None, channels: int, num_classes: int) -> nn.Module:
        from torchvision.models import list_models

        known = [model for model in list_models() if model.startswith(("resnet", "resnext", "wide_resnet"))]
        if name not in known:
            raise UserError(f"there is no backbone {name}{did_you_mean(name, [*NETWORKS, *known])}")
        if channels not in (1, 3):
            raise UserError(f"{name} takes grey or color images, not {channels} channels")
        try:
            return TorchvisionResNet(name, weights, num_classes)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"the weights {weights} of {name} are not available ({reason}); use DEFAULT or null"
            ) from error


class TorchvisionResNet(nn.Module):
    """One of torchvision's ResNets, for images in [-1, 1], grey or color.

    Args:
        name: name of the network in torchvision.models, such as "resnet18".
        weights: name of pretrained weights, such as "DEFAULT"; None for random weights.
        num_classes: number of logits.
    """

    # Statistics of ImageNet, on which all of torchvision's pretrained networks were trained.
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, name: str, weights: str | None, num_classes: int) -> None:
        super().__init__()
        from torchvision.models import get_model

        self.mean: Tensor
        self.std: Tensor
        self.backbone = get_model(name, weights=weights)
        self.backbone.fc = nn.Linear(self.backbone.fc.in_features, num_classes)
        self.register_buffer("mean", torch.tensor(self.MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1 or 3, H, W) to logits (N, num_classes)."""
        x = (x + 1) / 2
        return self.backbone((x.expand(-1, 3, -1, -1) - self.mean) / self.std)
