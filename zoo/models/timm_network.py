"""timm's image models, pretrained or not, as networks of a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import nearest, one_line
from zoo.models.base import eval_mode
from zoo.sharing.connection import connection_problem

# Arguments of timm.create_model that this class sets itself.
RESERVED = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"),
    *("num_classes", "in_chans", "img_size"),
)


class TimmNetwork(nn.Module):
    """An image model of timm (PyTorch Image Models) for images in [-1, 1], grey or color.

    Needs timm: `pip install lightning-zoo[timm]`. The model is `backbone`, without its classifier; `head` is a linear
    layer from its features to the logits. Images are normalized by the mean and standard deviation of timm's
    configuration of the model; grey images are repeated over three channels. Models of a fixed image size, such as
    Vision Transformers, are built for the size of `input_shape`.

    Args:
        input_shape: shape of an image, (1 or 3, H, W).
        num_classes: number of logits.
        name: name of the model in timm, such as "resnet18" or "vit_small_patch16_224.augreg_in21k".
        pretrained: true for timm's pretrained weights, which are downloaded on first use; path to a file of such
            weights, where there is no network; false for random weights. A checkpoint holds its own.
        options: further arguments of `timm.create_model`, such as `{"drop_path_rate": 0.1}`.

    Raises:
        ValueError: timm is not installed, there is no such model, it does not take these images or options, or its
            weights are not available.
    """

    #: Options that a checkpoint stores with another value.
    stored: ClassVar[dict[str, Any]] = {"pretrained": False}
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        name: str = "resnet18",
        pretrained: bool | str = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise ValueError(f"{name} takes grey or color images (C, H, W), not the shape {tuple(input_shape)}")
        if reserved := next((option for option in options or {} if option in RESERVED), None):
            raise ValueError(f"options of {name} cannot have {reserved}, which TimmNetwork sets itself")
        self.backbone = _create(name, pretrained, input_shape, options or {})
        self.head = nn.Linear(_features(self.backbone, name, input_shape), num_classes)
        config = self.backbone.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 1 or 3, H, W) to logits (N, num_classes)."""
        x = (x + 1) / 2
        return self.head(self.backbone((x.expand(-1, 3, -1, -1) - self.mean) / self.std))


def _create(name: str, pretrained: bool | str, input_shape: Sequence[int], options: Mapping[str, Any]) -> Any:
    """Model of timm without its classifier."""
    try:
        import timm
    except ImportError as error:
        raise ValueError("TimmNetwork needs timm, which is not installed: pip install lightning-zoo[timm]") from error
    # Only timm's own models: a name such as "hf-hub:..." would make a checkpoint download what it names.
    if not timm.is_model(name):
        raise ValueError(
            f"timm has no model {name}{nearest(name, timm.list_models()) or '; timm.list_models() has all'}"
        )
    arguments = dict(options)
    weights = _read_weights(pretrained, name) if isinstance(pretrained, str) else None
    if weights is not None:
        arguments["pretrained_cfg_overlay"] = {"state_dict": weights}
    try:
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            arguments["img_size"] = tuple(input_shape[1:])
        with _without_retries() if pretrained is True else nullcontext():
            backbone: Any = timm.create_model(name, pretrained=bool(pretrained), num_classes=0, **arguments)
    except Exception as error:  # of the download, of the weights, or of an option
        reason = one_line(str(error))[:200]
        if pretrained is True and not isinstance(error, (TypeError, AssertionError)):
            raise ValueError(
                f"the pretrained weights of {name} are not available ({reason}); where there is no network, give a "
                "file of them as pretrained, or false for random weights"
            ) from error
        given = "".join(f", {option} {value}" for option, value in options.items())
        given += f", weights {pretrained}" if pretrained else ""
        raise ValueError(f"timm cannot build {name} ({_size(input_shape)}{given}): {reason}") from error
    if weights is not None:
        backbone.pretrained_cfg["state_dict"] = None  # which copies of the model would keep in memory
        own = set(backbone.state_dict())
        if len(own & set(weights)) < len(own) / 2:  # timm leaves out what it does not know
            raise ValueError(f"{pretrained} does not hold weights of {name}: it has no {min(own - set(weights))}")
    return backbone


@contextmanager
def _without_retries() -> Iterator[None]:
    """Lets the Hugging Face hub look in its cache only if it cannot be reached; by itself it tries for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(connection_problem(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_weights(path: str, name: str) -> dict[str, Tensor]:
    """Weights in a file, safetensors or a state dict that is read with `weights_only=True`."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; pretrained is true, false, or a file of weights of {name}")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes raise arbitrary exceptions
        reason = one_line(str(error).split(". ")[0])[:200]
        raise ValueError(f"{path} is not a file of weights that can be read safely ({reason})") from error


def _features(backbone: nn.Module, name: str, input_shape: Sequence[int]) -> int:
    """Number of features that a model returns for an image; timm's attributes do not say it of every model."""
    try:
        with eval_mode(backbone):
            output = backbone(torch.zeros(1, 3, *input_shape[1:]))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = one_line(str(error))[:200]
        raise ValueError(f"{name} does not take {_size(input_shape)} ({reason}); try 224x224") from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        raise ValueError(f"{name} does not return one vector of features for an image, so it has no place for a head")
    return output.shape[1]


def _size(input_shape: Sequence[int]) -> str:
    return f"images of {input_shape[1]}x{input_shape[2]} pixels"
