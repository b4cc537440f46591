"""Tracking of runs: their folders, their loggers, and Weights & Biases."""
