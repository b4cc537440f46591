"""Recipes: YAML configurations of models, data and training."""
