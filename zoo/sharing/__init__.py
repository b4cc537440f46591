"""Sharing trained models: as folders with a model card, and as repositories on the Hugging Face Hub."""
