"""Checkpoints: their format, reading them safely, writing them atomically, and finding the run to resume."""
