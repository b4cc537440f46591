"""Generative adversarial networks (GANs)."""
