"""Trying out a trained model: what it can do as plain functions, and a page in the browser that calls them."""
