"""Weights of small pretrained models, as safetensors files."""
