"""The dropout MLP."""
