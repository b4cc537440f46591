"""lightning-zoo: the systems of one deep-learning lecture, each as a LightningModule that is worth reusing."""

from zoo.gan import GAN

__version__ = "0.1.0"

__all__ = ["GAN"]
