"""Residual networks as a LightningModule: He et al.'s for small images, quicker ones, or torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.catalog import did_you_mean
from zoo.classifier import Classifier
from zoo.errors import UserError, check_choice
from zoo.resnet.network import INITS, KINDS, PooledResNet, ResNet

NETWORKS = {"cifar": ResNet, "pooled": PooledResNet}


class ResNetClassifier(Classifier):
    """A residual network y = F(x, w) + x that tells images apart.

    Args:
        input_shape: of one image, (C, H, W).
        num_classes: number of labels in the data.
        backbone: "cifar" for the networks of He et al. for small images; "pooled" for one that learns in fewer passes
            (see `zoo.resnet.network.PooledResNet`); the arguments from `depth` on describe them. Or one of
            torchvision's, such as "resnet18".
        weights: of torchvision's network: "DEFAULT" for pretrained ones, None for random ones. The last layer is
            made anew for the data's classes; grey images are repeated over the three channels.
        depth: see `zoo.resnet.network.ResNet`, as for the next arguments.
        widths: channels of each stage.
        kind: with and without shortcuts and batch normalization.
        init: of the convolutions.
        patch: side of the squares of pixels that are folded into channels at the entrance.
        **kwargs: of `zoo.classifier.Classifier`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        backbone: str = "cifar",
        weights: str | None = None,
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        kind: Literal["plain", "batch_norm", "residual", "residual_batch_norm"] = "residual_batch_norm",
        init: Literal["default", "he"] = "he",
        patch: int = 1,
        **kwargs: Any,
    ) -> None:
        if len(input_shape) != 3:
            raise UserError(f"ResNetClassifier takes images (C, H, W), not samples of the shape {tuple(input_shape)}")
        check_choice("kind", kind, KINDS)
        check_choice("init", init, INITS)
        channels, height, width = input_shape
        if backbone in NETWORKS:
            if weights is not None:
                raise UserError(f"weights {weights} belong to torchvision's networks; choose one by backbone: resnet18")
            if patch < 1 or height % patch or width % patch:
                raise UserError(f"patch {patch} does not divide images of {height}x{width} pixels")
            if backbone == "pooled" and min(height, width) // patch < 2:
                raise UserError(
                    f"images of {height}x{width} pixels are too small for backbone pooled with patch {patch}; it needs "
                    f"{2 * patch}x{2 * patch}"
                )
            try:
                network: nn.Module = NETWORKS[backbone](channels, num_classes, depth, widths, kind, init, patch)
            except ValueError as error:
                raise UserError(str(error)) from error
        else:
            network = self._torchvision(backbone, weights, channels, num_classes)
        super().__init__(network, input_shape, num_classes, **kwargs)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # The checkpoint holds its own weights: nothing is downloaded again when it is loaded.
        checkpoint["hyper_parameters"]["weights"] = None

    @staticmethod
    def _torchvision(name: str, weights: str | None, channels: int, num_classes: int) -> nn.Module:
        from torchvision.models import list_models

        known = [model for model in list_models() if model.startswith(("resnet", "resnext", "wide_resnet"))]
        if name not in known:
            raise UserError(f"there is no backbone {name}{did_you_mean(name, ['cifar', *known])}")
        if channels not in (1, 3):
            raise UserError(f"{name} takes grey or colour images, not {channels} channels")
        try:
            return TorchvisionResNet(name, weights, num_classes)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"the weights {weights} of {name} are not to be had ({reason}); use DEFAULT or null"
            ) from error


class TorchvisionResNet(nn.Module):
    """A ResNet of torchvision on images in [-1, 1], grey or colour.

    Args:
        name: of the function in torchvision.models that makes it, such as "resnet18".
        weights: pretrained ones by name, such as "DEFAULT"; None for random ones.
        num_classes: number of logits.
    """

    # ImageNet's, which all of torchvision's pretrained networks are trained with.
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
