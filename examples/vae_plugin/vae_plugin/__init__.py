"""A variational autoencoder as a plugin of lightning-zoo."""

from vae_plugin.module import VAE

__all__ = ["VAE"]
