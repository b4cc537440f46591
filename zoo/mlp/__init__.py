"""The dropout MLP."""

from zoo.mlp.module import MLPClassifier

__all__ = ["MLPClassifier"]
