"""lightning-zoo: the systems of one deep-learning lecture, each as a LightningModule that is worth reusing."""

from zoo.diffusion import Diffusion
from zoo.gan import GAN
from zoo.mlp import MLPClassifier
from zoo.resnet import ResNetClassifier

__version__ = "0.1.0"

__all__ = ["GAN", "Diffusion", "MLPClassifier", "ResNetClassifier"]
