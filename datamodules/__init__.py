"""The data modules. In the repository this folder stands at the top; installed, it is `zoo.datamodules`."""

from zoo.datamodules.augment import Augment
from zoo.datamodules.base import InMemoryDataModule
from zoo.datamodules.digits import Digits
from zoo.datamodules.image_folder import ImageFolder
from zoo.datamodules.points import Points
from zoo.datamodules.sequences import Sequences
from zoo.datamodules.text import Text
from zoo.datamodules.torchvision_sets import CIFAR10, MNIST, FashionMNIST

__all__ = [
    "CIFAR10",
    "MNIST",
    "Augment",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "InMemoryDataModule",
    "Points",
    "Sequences",
    "Text",
]
