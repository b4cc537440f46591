"""Recipes that change one aspect of another recipe and are stacked on it."""
