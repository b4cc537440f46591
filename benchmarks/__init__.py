"""What measures quality and speed, and the tables that it has led to: `python -m benchmarks.NAME` in a checkout."""
