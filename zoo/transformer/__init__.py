"""The Transformer: its network, which other models build on, and the language model."""

from zoo.transformer.generate import generate, narrow
from zoo.transformer.module import TransformerLM
from zoo.transformer.network import EncoderDecoder, LanguageModel, VisionTransformer, recording

__all__ = ["EncoderDecoder", "LanguageModel", "TransformerLM", "VisionTransformer", "generate", "narrow", "recording"]
