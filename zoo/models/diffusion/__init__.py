"""Diffusion models and consistency models."""
