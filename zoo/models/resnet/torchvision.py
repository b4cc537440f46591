"""torchvision's ResNets, pretrained or not, as networks of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import did_you_mean

# Statistics of ImageNet, on which torchvision's pretrained networks were trained.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TorchvisionResNet(nn.Module):
    """A ResNet, ResNeXt or Wide ResNet of torchvision for images in [-1, 1], grey or color.

    The last layer is replaced by one for the given classes. Grey images are repeated over three channels.

    Args:
        input_shape: shape of an image, (1 or 3, H, W).
        num_classes: number of logits.
        name: name of the network in torchvision.models.
        weights: pretrained weights, such as "DEFAULT", which are downloaded on first use; None for random weights. A
            checkpoint holds its own.

    Raises:
        ValueError: there is no such network, or its weights are not available.
    """

    #: Options that a checkpoint stores with another value.
    stored: ClassVar[dict[str, Any]] = {"weights": None}
    mean: Tensor
    std: Tensor

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, name: str = "resnet18", weights: str | None = None
    ) -> None:
        super().__init__()
        from torchvision.models import list_models

        known = [model for model in list_models() if model.startswith(("resnet", "resnext", "wide_resnet"))]
        if name not in known:
            raise ValueError(f"torchvision has no {name}{did_you_mean(name, known)}")
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise ValueError(f"{name} takes grey or color images (C, H, W), not the shape {tuple(input_shape)}")
        self.backbone = _create(name, weights)
        self.head = nn.Linear(self.backbone.fc.in_features, num_classes)
        self.backbone.fc = nn.Identity()
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1 or 3, H, W) to logits (N, num_classes)."""
        x = (x + 1) / 2
        return self.head(self.backbone((x.expand(-1, 3, -1, -1) - self.mean) / self.std))


def _create(name: str, weights: str | None) -> Any:
    """Network of torchvision with pretrained weights, which are read from torch's cache or downloaded."""
    from torchvision.models import get_model, get_model_weights

    known = {entry.name: entry for entry in get_model_weights(name)}
    short = str(weights).rsplit(".", 1)[-1]  # ResNet18_Weights.DEFAULT is DEFAULT
    if weights is not None and short not in (*known, "DEFAULT"):
        raise ValueError(f"{name} has no weights {weights}{did_you_mean(weights, ['DEFAULT', *known])}")
    try:
        return get_model(name, weights=weights)
    except (OSError, RuntimeError) as error:  # no connection, or a broken file
        url = get_model_weights(name)[short].url
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the weights {weights} of {name} cannot be downloaded ({reason}); put {url} into "
            f"{torch.hub.get_dir()}/checkpoints, or give null for random weights"
        ) from error
