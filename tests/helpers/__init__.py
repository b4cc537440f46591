"""Helpers of the tests: commands, tiny models and checkpoints, and programs of several processes."""
