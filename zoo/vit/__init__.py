"""The Vision Transformer."""

from zoo.vit.module import ViTClassifier

__all__ = ["ViTClassifier"]
