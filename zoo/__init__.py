"""lightning-zoo: the systems of one deep-learning lecture, each as a LightningModule that is worth reusing."""

from zoo.diffusion import ConsistencyModel, Diffusion
from zoo.gan import GAN
from zoo.mlp import MLPClassifier
from zoo.resnet import ResNetClassifier
from zoo.seq2seq import Seq2Seq
from zoo.transformer import TransformerLM
from zoo.vit import ViTClassifier

__version__ = "0.1.0"

__all__ = [
    "GAN",
    "ConsistencyModel",
    "Diffusion",
    "MLPClassifier",
    "ResNetClassifier",
    "Seq2Seq",
    "TransformerLM",
    "ViTClassifier",
]
