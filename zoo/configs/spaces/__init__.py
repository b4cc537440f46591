"""Search spaces of `tune`."""
