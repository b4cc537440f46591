"""The Transformer's building blocks and the language model."""
