"""Processes of a run that end together, and fully sharded data parallelism."""
