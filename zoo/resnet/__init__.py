"""Residual networks."""

from zoo.resnet.module import ResNetClassifier

__all__ = ["ResNetClassifier"]
