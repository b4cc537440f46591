"""Residual networks for small images as a LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from zoo.contracts import TrainingSamples, data_of, offers
from zoo.errors import UserError, check_choice
from zoo.models.classifier import Classifier
from zoo.models.resnet.network import CIFARResNet, PooledResNet

BACKBONES = {"cifar": CIFARResNet, "pooled": PooledResNet}
WHITENED_SAMPLES = 5000  # training images from whose patches the filters are computed


class ResNetClassifier(Classifier):
    """Residual network y = F(x, w) + x for small images: that of He et al., or one that pools early.

    For pretrained networks take `Classifier` with the network `TorchvisionResNet` or `TimmNetwork`.

    Args:
        input_shape: shape of an image, (C, H, W).
        num_classes: number of classes.
        backbone: "cifar" for the networks of He et al. for small images; "pooled" for
            `zoo.models.resnet.network.PooledResNet`.
        depth: number of layers with weights; see `zoo.models.resnet.network`, as for the next arguments.
        widths: channels of each stage.
        block_type: blocks with or without shortcuts and batch normalization.
        init: initialization of the convolutions.
        patch_size: side of the squares of pixels that become channels.
        whitening: for the backbone "pooled": compute the filters of the first convolution from training images, such
            that they whiten patches, and do not train them. The data module needs the method `training_samples`.
        **kwargs: arguments of `zoo.models.classifier.Classifier`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        backbone: Literal["cifar", "pooled"] = "cifar",
        depth: int = 20,
        widths: Sequence[int] = (16, 32, 64),
        block_type: Literal["plain", "batch_norm", "residual", "residual_batch_norm"] = "residual_batch_norm",
        init: Literal["default", "he"] = "he",
        patch_size: int = 1,
        whitening: bool = False,
        **kwargs: Any,
    ) -> None:
        check_choice("backbone", backbone, BACKBONES)
        if whitening and backbone != "pooled":
            raise UserError("whitening is for the backbone pooled: leave it out, or give backbone pooled")
        network = partial(
            BACKBONES[backbone], depth=depth, widths=widths, block_type=block_type, init=init, patch_size=patch_size
        )
        if whitening:
            network = partial(network, whitening=True)
        super().__init__(input_shape, num_classes, network, **kwargs)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.hparams["whitening"]:
            data = data_of(self.trainer)
            if data is None or not offers(data, TrainingSamples):
                raise UserError(
                    "whitening needs training images, which the data does not give (a method training_samples of the "
                    "data module); leave whitening out"
                )
            samples = data.training_samples(WHITENED_SAMPLES)
            networks: list[Any] = [self.network, *([] if self.ema is None else [self.ema.network])]
            for network in networks:
                network.whiten(samples)
