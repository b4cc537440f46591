"""lightning-zoo: the systems of one deep-learning lecture, each as a LightningModule that is worth reusing."""

from zoo.diffusion import ConsistencyModel, Diffusion
from zoo.gan import GAN
from zoo.mlp import MLPClassifier
from zoo.resnet import ResNetClassifier
from zoo.transformer import TransformerLM

__version__ = "0.1.0"

__all__ = ["GAN", "ConsistencyModel", "Diffusion", "MLPClassifier", "ResNetClassifier", "TransformerLM"]
