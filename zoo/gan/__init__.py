"""Generative adversarial networks."""

from zoo.gan.module import GAN

__all__ = ["GAN"]
